"""A stretch of a recording as training data, from its live rows, so that no picture or sound need be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import DataError
from mien.messages import Bool, Float32, Int64, ModalitySpec, Word
from mien.models.data.corpora import RECORDING_SUFFIX, CorpusItem
from mien.models.data.datasets import RawRows, word_times_ns
from mien.stream.bus.wire import decode_features
from mien.stream.recording import channels
from mien.stream.recording.reader import Recording, open_recording
from mien.stream.recording.table import zero_ns_of

_SLOT_NS = 100 * NS_PER_MS  # the longest slot of any modality: rows stay in their slots
_LATE_NS = 12 * NS_PER_S  # words may be committed this long after they were spoken


def is_recording(path: Path) -> bool:
    """Whether a labelled file is a mien recording."""
    return path.suffix.lower() == RECORDING_SUFFIX


def recorded_rows(
    path: Path, item: CorpusItem, specs: Mapping[str, ModalitySpec], encode: Callable[[list[str]], Float32] | None
) -> tuple[dict[str, RawRows], int, str | None]:
    """Rows of each modality between `start_s` and `end_s` of a recording, their duration in ns, and the words spoken.

    Args:
        path, item: the recording, and the part of it.
        specs: of the wanted modalities, except text.
        encode: encodes words to rows, as for any labelled text: the item's text or else the recognised words; None: no
            rows of text are wanted.

    Raises:
        RecordingError: it cannot be read.
        DataError: nothing is there, or it was made by other extractors than this version's.
    """
    recording = open_recording(path)
    zero_ns = zero_ns_of(recording)
    start_ns = zero_ns + round((item.start_s or 0.0) * NS_PER_S)
    start_ns = start_ns // _SLOT_NS * _SLOT_NS
    last_ns = recording_end_ns(recording)
    end_ns = last_ns if item.end_s is None else min(zero_ns + round(item.end_s * NS_PER_S), last_ns)
    rows: dict[str, RawRows] = {}
    for name, spec in specs.items():
        found = _rows(recording, name, spec.extractor, start_ns, end_ns)
        if found is not None:
            rows[name] = found
    words, times_ns = spoken_words(recording, start_ns, end_ns)
    if item.text and item.text.split() != words:
        words = item.text.split()
        times_ns = word_times_ns(len(words), end_ns - start_ns)
    if words and encode is not None:
        values = encode(words)
        rows["text"] = RawRows(values, (values != 0).any(1), np.asarray(times_ns, np.int64))
    if not rows:
        raise DataError("nothing was recorded in this stretch")
    return rows, end_ns - start_ns, " ".join(words) or None


def spoken_words(recording: Recording, start_ns: int, end_ns: int) -> tuple[list[str], Int64]:
    """Committed, certain words that end within a stretch, and when each ends, in ns from its start."""
    known: dict[int, Word] = {}
    for entry in recording.entries({channels.FEATURES + "text"}):
        record, _ = entry.features()
        if record.t_end_ns > end_ns + _LATE_NS:
            break
        merge_words(known, record.said())
    words = [word for word in known.values() if not word.uncertain and start_ns <= word.t_end_ns < end_ns]
    return [word.text.strip() for word in words], np.array([word.t_end_ns - start_ns for word in words], np.int64)


def merge_words(known: dict[int, Word], words: Iterable[Word]) -> None:
    """Merge a message's committed words into the earlier ones, keyed by their start time."""
    newest_ns = next(reversed(known), -1)
    for word in words:
        # Newer messages know better whether a word is certain.
        if word.committed and (word.t_start_ns in known or word.t_start_ns > newest_ns):
            known[word.t_start_ns] = word
            newest_ns = max(newest_ns, word.t_start_ns)


def recording_end_ns(recording: Recording) -> int:
    """Capture time of the newest evidence."""
    newest_ns = 0
    for entry in recording.entries({channels.PREDICTION}):
        newest_ns = max(newest_ns, entry.publish_ns)
    return newest_ns


def _rows(recording: Recording, modality: str, extractor: str, start_ns: int, end_ns: int) -> RawRows | None:
    values: list[Float32] = []
    valid: list[Bool] = []
    times_ns: list[Int64] = []
    seen: set[tuple[int, int]] = set()
    for entry in recording.entries({channels.FEATURES + modality}):
        if entry.publish_ns < start_ns:  # the end of the message
            continue
        record, frames = entry.features()
        if record.t_start_ns > end_ns + NS_PER_S:
            break
        if (record.run, record.seq) in seen:
            continue
        seen.add((record.run, record.seq))
        if record.extractor != extractor:
            raise DataError(f"its {modality} rows were made by {record.extractor}, those of this mien are {extractor}")
        message = decode_features(frames)
        inside = (message.times_ns >= start_ns) & (message.times_ns < end_ns)
        if inside.any():
            values.append(message.values[inside])
            valid.append(message.valid[inside])
            times_ns.append(message.times_ns[inside] - start_ns)
    if not values:
        return None
    order = np.argsort(np.concatenate(times_ns), kind="stable")
    return RawRows(
        np.concatenate(values)[order], np.concatenate(valid)[order], np.concatenate(times_ns)[order].astype(np.int64)
    )
