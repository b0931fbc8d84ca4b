"""A recorder in its own process, as started by the dashboard and `mien run --record`.

    recorder = RecorderProcess(Path("talk.mcap"), config.bus)
    recorder.state        # RecorderState: "waiting", "recording", "ended" or "failed", with size, seconds and error
    recorder.stop()

It ends when the file has been closed properly; if the parent process dies, it closes the file and ends too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import msgspec

from mien.config import BusConfig
from mien.stream.processes.child import PROGRAM, close_input, send_line, wait_or_kill
from mien.stream.recording.recorder import RecorderState

_STOP_S = 10.0  # for the last chunk and the index
_DIED = "the recorder died; what is on the disk can be read"
_decode_state = msgspec.json.Decoder(RecorderState).decode


class RecorderProcess:
    """Starts `mien record` and tracks its state.

    Args:
        path: to create; an existing file is not overwritten, the state is then "failed".
        bus: of the session. session: its name; None takes the first one received.
        video, audio: also record pictures and sound, if the session publishes them.
    """

    def __init__(
        self, path: Path, bus: BusConfig, session: str | None = None, *, video: bool = False, audio: bool = False
    ) -> None:
        command = [*PROGRAM, "record", str(path), "--supervised"]
        command += ["--video"] * video + ["--audio"] * audio + (["--session", session] if session else [])
        self.state = RecorderState("waiting", str(path))  # as of about a second ago
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=os.name == "posix",  # we handle Ctrl-C
        )
        send_line(self._process, msgspec.json.encode(bus).decode())
        self._thread = threading.Thread(target=self._follow, name="recorder", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_recording(self, timeout_s: float, stopping: threading.Event | None = None) -> bool:
        """Wait until it receives the session, and misses nothing from then on.

        Returns:
            False if it failed, if that took longer than `timeout_s`, or if told to stop meanwhile.
        """
        deadline_s, stopping = time.monotonic() + timeout_s, stopping or threading.Event()
        while time.monotonic() < deadline_s and self.state.state == "waiting" and self._thread.is_alive():
            if stopping.wait(0.02):
                break
        return self.state.state == "recording"

    def stop(self) -> RecorderState:
        """Close the file properly and end. Returns the last state."""
        close_input(self._process)
        wait_or_kill(self._process, _STOP_S)  # what is on disk stays readable
        self._thread.join(2.0)
        return self.state

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(msgspec.MsgspecError):
                    self.state = _decode_state(line)
        if self._process.wait() != 0 and self.state.state != "failed":
            self.state = msgspec.structs.replace(self.state, state="failed", error=_DIED)
