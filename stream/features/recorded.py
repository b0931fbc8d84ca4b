"""Feature tables of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mien.errors import RecordingError
from mien.messages import FeatureWindow
from mien.stream.bus.wire import decode_features
from mien.stream.features.table import FeatureTable
from mien.stream.recording import channels
from mien.stream.recording.reader import Recording, open_recording
from mien.stream.recording.table import zero_ns_of


def recorded_features(path: Path) -> FeatureTable:
    """The features in a recording, from its zero on. It has no boxes.

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
        key = entry.channel, record.run, record.seq
        if key not in seen:  # a message may have been sent again
            seen.add(key)
            yield decode_features(frames)
