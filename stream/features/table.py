"""Feature tables: a row per frame, audio hop and word, in time order, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mien.clock import NS_PER_S
from mien.errors import ConfigError, RecordingError
from mien.files import check_target, write_file
from mien.install import install_command
from mien.messages import FeatureWindow, Float32, Word
from mien.models.voice.columns import ENERGY, F0, N_MELS, PERIODICITY, VAD, ZCR
from mien.stream.bus.wire import decode_features
from mien.stream.features.action_units import action_units
from mien.stream.features.columns import BOX, COLUMNS, MELS, POSE, SHAPES, SOUND, UNITS
from mien.stream.modalities.audio import F0_REFERENCE_HZ
from mien.stream.modalities.audio import SPEC as AUDIO_SPEC
from mien.stream.modalities.vision import BLENDSHAPES
from mien.stream.modalities.vision import POSE as POSE_COLUMNS
from mien.stream.modalities.vision import SPEC as VISION_SPEC
from mien.stream.recording import channels
from mien.stream.recording.reader import Recording, open_recording
from mien.stream.recording.stretch import merge_words
from mien.stream.recording.table import zero_ns_of

_MAKERS = {spec.name: spec.extractor.split("/")[0] for spec in (AUDIO_SPEC, VISION_SPEC)}  # of the columns named here
SUFFIXES = (".csv", ".parquet")
PART = ".part"  # after the suffix of a table that is not complete


def check_features(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check before extraction that the table can be written at the end; `inputs` as for `check_target`.

    Raises:
        ConfigError: another format, or Parquet without its library. FileError: it cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--features writes {' or '.join(SUFFIXES)}, and {path.name} is neither")
    if path.suffix.lower() == ".parquet":
        _parquet()
    check_target(path, inputs=inputs)


class FeatureTable:
    """Rows of any number of clips."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, clip: str, messages: Iterable[FeatureWindow], boxes: Float32 | None = None, zero_ns: int = 0) -> None:
        """Add the rows and words of a clip.

        Args:
            messages: of its workers, in order.
            boxes: (n, 4) of its vision rows, NaN without a face; None if unknown.
            zero_ns: start of the clip.
        """
        rows: list[dict[str, Any]] = []
        words: dict[int, Word] = {}
        frames = 0
        for message in messages:
            times_s = (message.times_ns - zero_ns) / NS_PER_S
            if message.modality == "vision":
                edges = None if boxes is None else boxes[frames : frames + len(message.values)]
                rows += _frames(message, times_s, edges)
                frames += len(message.values)
            elif message.modality == "audio":
                rows += _hops(message, times_s)
            elif message.modality == "text":
                merge_words(words, message.words)
        rows += [_word(word, zero_ns) for word in words.values()]
        rows.sort(key=lambda row: row["t_s"])  # stable: a frame before the audio hop of the same time
        self._rows += [{"clip": clip, **row} for row in rows if row["t_s"] >= 0]

    def extend(self, other: FeatureTable) -> None:
        """Add the rows of another table."""
        self._rows += other._rows

    def write(self, path: Path) -> None:
        """Write the table, readable by this user alone.

        Raises:
            ConfigError, FileError: as `check_features`.
        """
        is_parquet = path.name.removesuffix(PART).lower().endswith(".parquet")
        write_file(path, self._parquet_bytes() if is_parquet else self._csv(), private=True)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, [column.name for column in COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        return text.getvalue()

    def _parquet_bytes(self) -> bytes:
        arrow = _parquet()
        types = {"number": arrow.float32(), "text": arrow.string(), "flag": arrow.bool_()}
        fields, arrays = [], []
        for column in COLUMNS:
            kind = arrow.float64() if column.name.endswith("_s") else types[column.type]
            facts = {"unit": column.unit, "meaning": column.meaning, "rows": column.kind}
            fields.append(arrow.field(column.name, kind, metadata=facts))
            arrays.append(arrow.array([row.get(column.name) for row in self._rows], kind))
        sink = io.BytesIO()
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(fields)), sink)
        return sink.getvalue()


def _parquet() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ConfigError(f"Parquet needs the package pyarrow; {install_command('features')}; or write .csv") from error
    return pyarrow


def _frames(message: FeatureWindow, times_s: np.ndarray[Any, Any], boxes: Float32 | None) -> list[dict[str, Any]]:
    """Rows of frames; one without a face has only its time, since zeros would be numbers."""
    shapes = message.values[:, BLENDSHAPES]
    names = [column.name for column in (*POSE, *UNITS, *SHAPES)]
    numbers = np.concatenate([message.values[:, POSE_COLUMNS], action_units(shapes), shapes], axis=1)
    edges = [column.name for column in BOX]
    rows = []
    for index, (t_s, valid) in enumerate(zip(times_s.tolist(), message.valid.tolist(), strict=True)):
        row: dict[str, Any] = {"t_s": t_s, "kind": "frame", "valid": valid}
        if valid:
            row |= zip(names, numbers[index], strict=True)
            if boxes is not None:
                row |= zip(edges, boxes[index], strict=True)
        rows.append(row)
    return rows


def _hops(message: FeatureWindow, times_s: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    names = [column.name for column in (*SOUND, *MELS)]
    values = message.values
    pitch = (F0_REFERENCE_HZ * np.exp2(values[:, F0])).astype(np.float32)
    sound = np.stack([values[:, ENERGY], pitch, values[:, PERIODICITY], values[:, ZCR], values[:, VAD]], axis=1)
    numbers = np.concatenate([sound, values[:, :N_MELS]], axis=1)
    return [
        {"t_s": t_s, "kind": "hop", "valid": valid, **dict(zip(names, row, strict=True))}
        for t_s, valid, row in zip(times_s.tolist(), message.valid.tolist(), numbers, strict=True)
    ]


def _word(word: Word, zero_ns: int) -> dict[str, Any]:
    return {
        "t_s": (word.t_start_ns - zero_ns) / NS_PER_S,
        "kind": "word",
        "valid": not word.uncertain,
        "word": word.text.strip(),
        "word_end_s": (word.t_end_ns - zero_ns) / NS_PER_S,
        "word_probability": np.float32(word.probability),
    }


def boxes_of(seen: Sequence[tuple[float, float, float, float] | None]) -> Float32:
    """Boxes of faces as an array (n, 4), NaN without a face."""
    return np.array([(np.nan,) * 4 if box is None else box for box in seen], np.float32).reshape(-1, 4)


def recorded_features(path: Path) -> FeatureTable:
    """The features in a recording, from its zero on. They have no boxes.

    Raises:
        RecordingError: it cannot be read, or has no features.
    """
    recording = open_recording(path)
    table = FeatureTable()
    table.add(path.name, _messages(recording), zero_ns=zero_ns_of(recording))
    if not len(table):
        raise RecordingError(f"{path} holds no features")
    return table


def _messages(recording: Recording) -> Iterator[FeatureWindow]:
    seen: set[tuple[str, int, int]] = set()
    for entry in recording.entries(lambda name: name.startswith(channels.FEATURES)):
        record, frames = entry.features()
        maker = record.extractor.split("/")[0]
        if maker != _MAKERS.get(record.modality, maker):
            raise RecordingError(
                f"{recording.path}: its {record.modality} rows were made by {maker}, and this mien knows only the "
                f"columns of {_MAKERS[record.modality]}; export them with the mien that recorded them"
            )
        key = entry.channel, record.run, record.seq
        if key not in seen:  # a message may have been repeated
            seen.add(key)
            yield decode_features(frames)
