"""Datasets on disk, as written by `mien extract`: rows of labelled items.

A dataset is a folder:

    plan.json                what is extracted, from what, by which extractors: a resumed run must match it
    shard-00000.safetensors  per modality `m`: `m.values` (rows, dim), zero where not `m.valid`, `m.times_ns`, and
                             `m.lengths`, the rows of each item; the items themselves, labels and all, are JSON in its
                             metadata
    manifest.json            written last: specs, counts, statistics of the training rows, and what was skipped

Every file is written atomically, and a folder without a manifest is not a dataset yet. Only the owner may read the
files (mode 0600): they hold what people said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mien.errors import DataError
from mien.files import write_file
from mien.messages import ModalitySpec
from mien.models.data.datasets import Dataset, Labels, RawRows, Sample, Statistics, make_track, row_statistics
from mien.models.data.labels import Skipped

FORMAT = 1
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "BOOL": np.dtype(np.bool_)}
MANIFEST, PLAN = "manifest.json", "plan.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished dataset holds. `counts` is per corpus and split."""

    format: int = FORMAT
    specs: tuple[ModalitySpec, ...]
    shards: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    statistics: dict[str, Statistics]
    skipped: tuple[Skipped, ...] = ()


def write_shard(
    path: Path,
    specs: Mapping[str, ModalitySpec],
    items: Sequence[tuple[Labels, Mapping[str, RawRows]]],
    skipped: Sequence[Skipped] = (),
) -> None:
    """Write items and their rows as one shard.

    Raises:
        DataError: rows have the wrong shape or non-finite values, or the disk is full.
    """
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for name, spec in specs.items():
        every = [rows.get(name) for _, rows in items]
        for (labels, _), rows in zip(items, every, strict=True):
            if rows is None:
                continue
            if rows.values.ndim != 2 or rows.values.shape[1] != spec.dim or len(rows.values) != len(rows.valid):
                raise DataError(f"{labels.id}: {name} rows are {rows.values.shape}, not (n, {spec.dim})")
            if not np.isfinite(rows.values).all():
                raise DataError(f"{labels.id}: {name} rows hold numbers that are not finite")
        there = [rows for rows in every if rows is not None]
        observed: list[npt.NDArray[np.generic]] = [rows.values * rows.valid[:, None] for rows in there]
        tensors[f"{name}.values"] = _joined(observed, np.zeros((0, spec.dim), np.float32))
        tensors[f"{name}.valid"] = _joined([r.valid for r in there], np.zeros(0, np.bool_))
        tensors[f"{name}.times_ns"] = _joined([r.times_ns for r in there], np.zeros(0, np.int64))
        # -1: the item lacks this modality. 0: it has the modality, but no rows.
        tensors[f"{name}.lengths"] = np.array([-1 if r is None else len(r.values) for r in every], np.int64)
    # A single entry: safetensors writes several in varying order, and equal items must give equal bytes.
    contents = {"items": [labels for labels, _ in items], "skipped": skipped}
    write_file(path, save(tensors, {"mien": msgspec.json.encode(contents).decode()}), private=True, error=DataError)


def _joined(parts: list[npt.NDArray[np.generic]], empty: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(np.concatenate([empty, *parts]).astype(empty.dtype, copy=False))


def read_shard(
    path: Path, specs: Iterable[ModalitySpec]
) -> tuple[list[tuple[Labels, dict[str, RawRows]]], list[Skipped]]:
    """Items, their rows, and what was skipped while extracting them.

    The rows stay in the file, whose pages the system can drop: all corpora together are larger than a laptop's memory.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with safe_open(path, framework="np") as tensors:  # which checks the offsets
            metadata = tensors.metadata() or {}
        contents = msgspec.json.decode(metadata["mien"], type=dict[str, msgspec.Raw])
        labels = msgspec.json.decode(contents["items"], type=list[Labels])
        skipped = msgspec.json.decode(contents["skipped"], type=list[Skipped])
        rows: list[dict[str, RawRows]] = [{} for _ in labels]
        for spec in specs:
            values, valid, times_ns, lengths = (
                _mapped(path, f"{spec.name}.{part}") for part in ("values", "valid", "times_ns", "lengths")
            )
            begin = 0
            for each, length in zip(rows, lengths.tolist(), strict=True):
                if length >= 0:
                    part = slice(begin, begin + length)
                    each[spec.name] = RawRows(values[part], valid[part], times_ns[part])
                    begin += length
    except (SafetensorError, OSError, KeyError, ValueError, msgspec.DecodeError) as error:
        raise DataError(f"shard {path} is damaged ({error}); remove it and run `mien extract` again") from error
    return list(zip(labels, rows, strict=True)), skipped


def _mapped(path: Path, name: str) -> npt.NDArray[Any]:
    """A tensor of a safetensors file, read when it is used."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = msgspec.json.decode(file.read(size), type=dict[str, dict[str, Any]])
    entry = header[name]
    kind, shape, (begin, end) = _TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if begin == end:
        return np.empty(shape, kind)  # an empty file cannot be mapped
    return np.memmap(path, kind, "r", 8 + size + begin, shape).view(np.ndarray)


def nothing_extracted(skipped: Sequence[Skipped]) -> DataError:
    """The error where every item of a dataset was skipped."""
    count, first = len(skipped), skipped[0]
    return DataError(f"nothing was extracted: all {count} items were skipped, first {first.id}: {first.reason}")


def finish_dataset(
    folder: Path, specs: Mapping[str, ModalitySpec], shards: Sequence[Path], left_out: Sequence[Skipped] = ()
) -> Manifest:
    """Aggregate all shards and write the manifest: from here on the folder is a dataset.

    Args:
        left_out: items that are in no shard.

    Raises:
        DataError: every item was skipped, or the manifest cannot be written.
    """
    counts: dict[str, Counter[str]] = {}
    trained: dict[str, list[RawRows]] = {name: [] for name in specs}
    skipped = list(left_out)
    for shard in shards:
        items, unread = read_shard(shard, specs.values())
        skipped += unread
        for labels, rows in items:
            if not labels.copy:
                counts.setdefault(labels.corpus, Counter())[labels.split or "all"] += 1
            if labels.split in ("train", None):
                for name, part in rows.items():
                    trained[name].append(part)
    if not counts and skipped:
        for path in (*shards, folder / PLAN):
            path.unlink(missing_ok=True)  # so that the next run retries the items
        raise nothing_extracted(skipped)
    statistics = {name: row_statistics(p.values[p.valid] for p in parts) for name, parts in trained.items()}
    manifest = Manifest(
        specs=tuple(specs.values()),
        shards=tuple(shard.name for shard in shards),
        counts={corpus: dict(splits) for corpus, splits in counts.items()},
        statistics={name: found for name, found in statistics.items() if found is not None},
        skipped=tuple(skipped),
    )
    write_file(
        folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1), private=True, error=DataError
    )
    return manifest


def is_dataset(path: Path) -> bool:
    """Whether a folder is a dataset of `mien extract`, finished or not."""
    return path.is_dir() and ((path / MANIFEST).is_file() or (path / PLAN).is_file())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished dataset.

    Raises:
        DataError: the folder is no dataset, or its extraction has not finished.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        if (folder / PLAN).is_file():
            raise DataError(f"{folder} is half extracted; run the same `mien extract` again to finish it") from error
        raise DataError(f"{folder} is not a dataset; make one with `mien extract SOURCE -o {folder}`") from error
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"cannot read {folder / MANIFEST}: {error}") from error
    if manifest.format != FORMAT:
        raise DataError(f"{folder} has dataset format {manifest.format}, this mien reads {FORMAT}; extract it again")
    return manifest


def read_dataset(folder: Path) -> Dataset:
    """All samples of a finished dataset.

    Raises:
        DataError: the folder is not a finished dataset, or is damaged.
    """
    manifest = read_manifest(folder)
    specs = {spec.name: spec for spec in manifest.specs}
    samples = [
        Sample(labels, {name: make_track(specs[name], part) for name, part in rows.items()})
        for shard in manifest.shards
        for labels, rows in read_shard(folder / shard, manifest.specs)[0]
    ]
    return Dataset(specs, samples, list(manifest.skipped))
