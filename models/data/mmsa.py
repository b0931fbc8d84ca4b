"""Feature pickles of the MMSA project (`aligned_50.pkl`, `unaligned_50.pkl`), read without executing their code.

Layout: per split ("train", "valid", "test") a dict of arrays: `text` or `text_bert`, `audio` and `vision`, shape
(n, steps, dim), `regression_labels` (n,), and for unaligned files `audio_lengths` and `vision_lengths`.
A pickle can run arbitrary code when loaded. Here it may only make numpy arrays, and only if the user allows it.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from mien.clock import NS_PER_S
from mien.errors import DataError
from mien.messages import MODALITIES, SENTIMENT_MAX, Bool, Float32, ModalitySpec
from mien.models.data.datasets import Dataset, Labels, Sample, Track
from mien.models.data.labels import Skipped

_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_MAX_DEPTH = 8
_PLAIN_TYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|[SU][0-9]{1,6}|O8?)")


class _Type:
    """The dtype that a pickle gives an array. numpy's own type would trust a forged one, and crash."""

    def __init__(self, name: str, *_: object) -> None:
        self._name, self._order = str(name), ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = str(state[1]).replace("|", "")

    def plain(self) -> np.dtype[Any]:
        name = self._order + self._name.lstrip("<>|=")
        if not _PLAIN_TYPE.fullmatch(name):
            raise DataError(f"an array of {name[:40]!r}, which are not numbers or text")
        return np.dtype(name)


class _Array:
    """An array of a pickle, held until it is complete and can be checked."""

    def __init__(self, *_: object) -> None:
        self._shape: tuple[int, ...] = ()
        self._type: Any = None
        self._content: Any = None
        self._order = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self._shape, self._type, fortran, self._content = state
        self._order = "F" if fortran else "C"

    @classmethod
    def of(cls, content: Any, kind: Any, shape: Any = (), order: Any = "C") -> _Array:
        """An array whose state comes with its constructor."""
        array = cls()
        array._shape, array._type, array._content = shape, kind, content
        array._order = "F" if order == "F" else "C"
        return array

    def plain(self, depth: int) -> Any:
        if not isinstance(self._type, _Type) or not isinstance(self._shape, tuple | list):
            raise DataError("an array without a type or a shape")
        kind, shape = self._type.plain(), tuple(self._shape)
        if not all(isinstance(n, int) and 0 <= n <= 1 << 24 for n in shape):
            raise DataError("an array of impossible shape")
        if kind.hasobject:
            if not isinstance(self._content, list) or len(self._content) != math.prod(shape):
                raise DataError("an array whose content does not fit its shape")
            return [_plain(value, depth + 1) for value in self._content]
        if not isinstance(self._content, bytes | bytearray) or len(self._content) != math.prod(shape) * kind.itemsize:
            raise DataError("an array whose content does not fit its shape")
        if not self._content:
            return np.zeros(shape, kind)
        return np.frombuffer(self._content, kind).reshape(shape, order=self._order)[()]  # type: ignore[call-overload]


def _plain(value: Any, depth: int = 0) -> Any:
    """The unpickled value, with its arrays built."""
    if depth > _MAX_DEPTH:
        raise DataError("it is nested too deeply")
    if isinstance(value, _Array):
        return value.plain(depth)
    if isinstance(value, dict):
        return {key: _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth + 1) for inner in value]
    return value


_STAND_INS: dict[tuple[str, str], Any] = {
    **{
        (module, name): stand_in
        for module in _MODULES
        for name, stand_in in (
            ("_reconstruct", _Array),
            ("ndarray", _Array),
            ("dtype", _Type),
            ("scalar", lambda kind, content: _Array.of(content, kind)),
            ("_frombuffer", _Array.of),
        )
    },
    ("collections", "OrderedDict"): dict,
    # How old protocols encode bytes.
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1" if encoding == "latin1" else "ascii"),
}


class _ArraysOnly(pickle._Unpickler):
    """Builds arrays and plain containers; rejects anything else before it runs.

    Pure Python: the C unpickler reserves memory for whatever memo index a forged file gives.
    """

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise DataError(f"the pickle wants to run {module}.{name}, which is not an array; refused")
        return stand_in


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its suffix."""
    return path.suffix.lower() in (".pkl", ".pickle")


def read_mmsa(path: Path, allow_pickle: bool) -> Dataset:
    """Samples of an MMSA pickle, with its own modalities and dimensions.

    Non-finite values (MOSEI's audio holds -inf) become 0.

    Raises:
        DataError: pickles are not allowed, the file is damaged, or it has another layout.
    """
    if not allow_pickle:
        raise DataError(f"{path} is a pickle, a format that can carry code; add --allow-pickle if you trust its source")
    try:
        with path.open("rb") as stream:
            content = _plain(_ArraysOnly(stream, encoding="latin1").load())
    except DataError as error:
        raise DataError(f"{path}: {_line(error)}") from error
    except Exception as error:  # unpickling a damaged file raises almost anything
        raise DataError(f"{path} cannot be read as a pickle of arrays: {_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("train", content.get("test")), dict):
        raise DataError(f"{path} is not an MMSA pickle: it has no `train` or `test` part")
    specs: dict[str, ModalitySpec] = {}
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    name = "mosei" if "mosei" in str(path).lower() else "mosi" if "mosi" in str(path).lower() else "mmsa"
    for split in ("train", "valid", "test"):
        if split in content:
            try:
                _read_split(path, name, split, content[split], specs, samples, skipped)
            except (TypeError, ValueError, LookupError, AttributeError, OverflowError, MemoryError) as error:
                raise DataError(f"{path}, {split}: not the layout of an MMSA pickle: {_line(error)}") from error
    return Dataset(specs, samples, skipped)


def _line(error: Exception) -> str:
    """An error as one line, safe to print on a terminal: parts of it may come from the file."""
    return "".join(c if c.isprintable() else " " for c in str(error)[:300])


def _read_split(
    path: Path, corpus: str, split: str, part: dict[str, Any], specs: dict[str, ModalitySpec],
    samples: list[Sample], skipped: list[Skipped],
) -> None:  # fmt: skip
    where = f"{path}, {split}"
    if "regression_labels" not in part:
        raise DataError(f"{where}: `regression_labels` is missing")
    truth = np.asarray(part["regression_labels"], np.float64).reshape(-1)
    arrays: dict[str, tuple[Float32, Bool]] = {}
    for name in MODALITIES:
        if name in part:
            arrays[name] = _rows(where, name, part, len(truth))
            steps, dim = arrays[name][0].shape[1:]
            spec = ModalitySpec(name, dim, 0, steps, extractor=f"mmsa/{corpus}")
            if specs.setdefault(name, spec) != spec:
                raise DataError(f"{where}: `{name}` is {steps} x {dim}, unlike in the other parts")
    if not arrays:
        raise DataError(f"{where}: none of `text`, `audio`, `vision` is there")
    ids = [str(i) for i in part.get("id", range(len(truth)))]
    texts = [str(t) for t in part.get("raw_text", [])]
    for index, (item, sentiment) in enumerate(zip(ids, truth.tolist(), strict=True)):
        if not abs(sentiment) <= SENTIMENT_MAX:
            skipped.append(Skipped(item, f"sentiment {sentiment:g} is outside -3 ... 3"))
            continue
        tracks = {}
        for name, (values, seen) in arrays.items():
            rows = values[index][seen[index]]
            tracks[name] = Track(rows, np.ones(len(rows), np.float32), np.arange(len(rows)) * (NS_PER_S // 10))
        duration_ns = max((int(t.times_ns[-1]) + 1 for t in tracks.values() if len(t.times_ns)), default=0)
        text = texts[index] if index < len(texts) else None
        labels = Labels(id=item, corpus=corpus, split=split, sentiment=sentiment, duration_ns=duration_ns, text=text)
        samples.append(Sample(labels, tracks))


def _rows(where: str, name: str, part: dict[str, Any], count: int) -> tuple[Float32, Bool]:
    """Values (n, steps, dim), finite, and which steps are observed (n, steps)."""
    with np.errstate(over="ignore"):  # beyond float32 is not finite either
        values = np.asarray(part[name], np.float32)
    if values.ndim != 3 or len(values) != count:
        raise DataError(f"{where}: `{name}` has shape {values.shape}, not ({count}, steps, dim)")
    finite = np.isfinite(values)
    values = np.where(finite, values, np.float32(0))
    steps = values.shape[1]
    lengths = part.get(f"{name}_lengths")
    bert = np.asarray(part["text_bert"]) if name == "text" and "text_bert" in part else None
    if bert is not None and bert.ndim == 3 and bert.shape[1:] == (3, steps):
        return values, bert[:, 1] > 0  # BERT's own attention mask
    if lengths is not None:
        limit = np.asarray(lengths, np.int64).reshape(-1)
        if len(limit) != count:
            raise DataError(f"{where}: `{name}_lengths` has {len(limit)} entries for {count} items")
        return values, np.arange(steps) < limit[:, None]
    return values, (values != 0).any(2)  # padding of aligned files is all zero
