"""What the dashboard's user keeps: recordings. They are written only when asked for, and only on this machine."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import platformdirs

from mien.config import BusConfig
from mien.errors import RecordingError
from mien.stream.recording.control import RecorderProcess
from mien.stream.recording.recorder import RecorderState


class Keeping:
    """Recordings of the session that the dashboard looks at.

    Args:
        bus: where the session is.
        session: its name; None for whichever is there.
        folder: where recordings go; empty for "mien" among the user's documents.
        allowed: False where the page is served beyond this machine: nobody elsewhere may fill this disk.

    Attributes:
        last: file of the recording that is being made, or was made last.
    """

    def __init__(self, bus: BusConfig, session: str | None, folder: str, *, allowed: bool) -> None:
        self.folder = Path(folder).expanduser() if folder else platformdirs.user_documents_path() / "mien"
        self.last: Path | None = None
        self._bus = bus
        self._session = session
        self._allowed = allowed
        self._recorder: RecorderProcess | None = None
        self._lock = threading.Lock()

    @property
    def recording(self) -> RecorderState | None:
        """How far the recording is that is being made now; None if there is none."""
        recorder = self._recorder
        if recorder is None or not recorder.is_running:
            return None
        return recorder.state

    @property
    def error(self) -> str | None:
        """Why the last recording ended before it was told to; None if it did not."""
        recorder = self._recorder
        if recorder is None or recorder.is_running:
            return None
        return recorder.state.error

    def state(self) -> dict[str, Any] | None:
        """What the page is told; None where recording is not allowed."""
        if not self._allowed:
            return None
        now = self.recording
        return {
            "folder": str(self.folder),
            "path": now.path if now is not None else None,
            "seconds": round(now.seconds) if now is not None else 0,
            "megabytes": round(now.bytes / 1e6, 1) if now is not None else 0.0,
            "last": str(self.last) if self.last is not None and now is None else None,
            "error": self.error,
        }

    def start(self, *, video: bool, audio: bool) -> Path:
        """Begin a recording; it goes on until `stop`.

        Raises:
            RecordingError: it is not allowed here, or the file cannot be made.
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
            self.last = path
            return path

    def stop(self) -> None:
        """End the recording, if one is being made, and wait until its file is closed."""
        with self._lock:
            if self._recorder is not None and self._recorder.is_running:
                self._recorder.stop()
