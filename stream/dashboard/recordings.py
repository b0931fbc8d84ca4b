"""Recordings and labels made from the page: only on request, and only on this machine."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from mien.clock import NS_PER_MS, NS_PER_S
from mien.config import BusConfig
from mien.errors import RecordingError
from mien.stream.recording.control import RecorderProcess
from mien.stream.recording.labels import LabelFile, Stretch
from mien.stream.recording.reader import open_recording
from mien.stream.recording.recorder import RecorderState
from mien.stream.recording.table import zero_ns_of


class Label(msgspec.Struct, frozen=True):
    """A labelled stretch; capture times in ms."""

    from_ms: int
    to_ms: int
    sentiment: float | None = None
    emotion: str | None = None


class Recordings:
    """Recordings of the session shown on the dashboard.

    Args:
        session: its name; None for any.
        folder: for recordings; empty for "mien" in the user's documents.
        allowed: False if the page is served to other machines: they must not fill this disk.
        replayed: the recording being replayed, if any: labels go to it.

    Attributes:
        last: file of the current, last or replayed recording; labels refer to it.
        marks: begin and end of each label, capture times in ms.

    Raises:
        MienError: the replayed recording, or its labels, cannot be read.
    """

    def __init__(
        self, bus: BusConfig, session: str | None, folder: str, *, allowed: bool, replayed: Path | None = None
    ) -> None:
        self.folder = Path(folder).expanduser() if folder else platformdirs.user_documents_path() / "mien"
        self.last = replayed
        self.marks: list[tuple[int, int]] = []
        self._stretches: list[Stretch] = []
        if replayed is not None:
            self._read_labels(replayed)
        self._bus = bus
        self._session = session
        self._allowed = allowed
        self._recorder: RecorderProcess | None = None
        self._lock = threading.Lock()

    @property
    def recording(self) -> RecorderState | None:
        """The current recording's progress; None if there is none."""
        recorder = self._recorder
        if recorder is None or not recorder.is_running:
            return None
        return recorder.state

    @property
    def error(self) -> str | None:
        """Why the last recording ended early; None if it did not."""
        recorder = self._recorder
        if recorder is None or recorder.is_running:
            return None
        return recorder.state.error

    def state(self, shared: dict[str, bool]) -> dict[str, Any] | None:
        """The state for the page; None if recording is not allowed.

        Args:
            shared: whether the session publishes "video" and "audio" on request.
        """
        if not self._allowed:
            return None
        now = self.recording
        return {
            "folder": str(self.folder),
            "shared": shared,
            "path": now.path if now is not None else None,
            "last": str(self.last) if self.last is not None and now is None else None,
            "error": self.error,
        }

    def start(self, *, video: bool, audio: bool) -> Path:
        """Start a recording, until `stop`.

        Raises:
            RecordingError: not allowed here, or the file cannot be created.
        """
        if not self._allowed:
            raise RecordingError("the page is served beyond this machine, so it cannot record; use mien record")
        with self._lock:
            if self.recording is not None and self.last is not None:
                return self.last
            path = self.folder / f"{datetime.now():%Y-%m-%d %H.%M.%S}.mcap"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecordingError(f"cannot make the folder {self.folder}: {error.strerror}") from error
            self._recorder = RecorderProcess(path, self._bus, self._session, video=video, audio=audio)
            self.last, self.marks, self._stretches = path, [], []
            return path

    def stop(self) -> None:
        """Stop the current recording, if any, and wait until its file is closed."""
        with self._lock:
            if self._recorder is not None and self._recorder.is_running:
                self._recorder.stop()

    @property
    def can_label(self) -> bool:
        """Whether there is a recording to label."""
        return self._allowed and self.last is not None

    def label(self, label: Label) -> str:
        """Write a label into the recording's table; returns a sentence on the outcome.

        Raises:
            RecordingError: there is no recording, or it cannot be read. DataError: the stretch lies outside of it.
        """
        with self._lock:
            file, zero_ns = self._file()
            start_s, end_s = ((at_ms * NS_PER_MS - zero_ns) / NS_PER_S for at_ms in (label.from_ms, label.to_ms))
            stretch = file.add(start_s, end_s, sentiment=label.sentiment, emotion=label.emotion)
            self._stretches.append(stretch)
            self.marks = [*self.marks, (label.from_ms, label.to_ms)]
        what = label.emotion or f"sentiment {label.sentiment:+g}"
        return f"{stretch.end_s - stretch.start_s:.1f} s labelled {what}, in {file.table}"

    def take_back(self) -> str:
        """Remove the most recent label; returns a sentence on the outcome.

        Raises:
            RecordingError: there is none.
        """
        with self._lock:
            if not self._stretches:
                raise RecordingError("there is no label to take back")
            file, _ = self._file()
            file.remove(self._stretches.pop())
            self.marks = self.marks[:-1]
        return f"the last label is taken back, in {file.table}"

    def _read_labels(self, path: Path) -> None:
        zero_ms = zero_ns_of(open_recording(path)) // NS_PER_MS
        self._stretches = list(LabelFile(path).stretches)
        self.marks = [(zero_ms + round(s.start_s * 1000), zero_ms + round(s.end_s * 1000)) for s in self._stretches]

    def _file(self) -> tuple[LabelFile, int]:
        """The labels, and the session time of the recording's zero.

        A recording in progress is read as far as it has reached the disk, up to a second ago.
        """
        if not self.can_label or self.last is None:
            raise RecordingError("there is no recording to label; press Record first")
        return LabelFile(self.last), zero_ns_of(open_recording(self.last))
