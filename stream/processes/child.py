"""One process of a session, as its supervisor sees it: a child with a pipe in each direction.

Each process is this same program (`python -m mien capture video --supervised`): the same on every system, and nothing
is inherited by accident. See `mien.stream.processes.control` for the other end of the pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import platformdirs

from mien.config import Config
from mien.errors import MienError
from mien.files import reason
from mien.stream.processes.control import HEARTBEAT_TIMEOUT_S, Assignment

# One thread per library: on a small machine spinning threads cost more than they gain.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
    "GLOG_minloglevel": "2",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OPENCV_LOG_LEVEL": "ERROR",
    # No library may look for a newer model on its own.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}
# Memory in huge pages, where Linux gives them on request: a frame takes fewer address translations, which cost a
# fiftieth of its time in a virtual machine. Not for all workers: text would take a third more memory.
_HUGE_PAGES = {"video": "glibc.malloc.hugetlb=1"}


# This same program. -P: files in the working folder must not shadow modules.
PROGRAM = (sys.executable, "-P", "-m", "mien")

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # before a crashed process is restarted
STABLE_AFTER_S = 30.0  # after this long a restarted process counts as healthy


def backoff_s(deaths: int) -> float:
    """Delay before a restart after that many consecutive crashes."""
    return BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1]


# On Linux a process dies with the thread that started it (see mien.stream.processes.control): one that stays.
_spawner = ThreadPoolExecutor(1, "spawner")

# What is started under a name, up to a dot; any other name is that of a capture worker.
_COMMANDS = {"inference": ["infer"], "dashboard": ["dashboard"], "window": ["dashboard", "--window"]}


@dataclass(frozen=True)
class Event:
    """Something a process said, or that it ended (state "exited")."""

    worker: str
    pid: int
    state: str
    facts: dict[str, Any] = field(default_factory=dict)

    def as_error(self) -> MienError:
        """The process's own error message, as an exception."""
        error = MienError(str(self.facts.get("error", f"{self.worker} failed")))
        error.exit_code = int(self.facts.get("exit_code", 1))
        return error


class Child:
    """One process of the session.

    Args:
        program: runs `mien`; this very installation by default.

    Attributes:
        began_s, ready_s, heard_s: when it was started, became ready, and sent its last heartbeat.
        timeout_s: of the next heartbeat, as announced by the process.
        hung: why we killed it.
    """

    def __init__(
        self,
        worker: str,
        assignment: Assignment,
        events: queue.SimpleQueue[Event],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.worker = worker
        self.ready = False
        self.ended = False
        self.late = False
        self.hung: str | None = None
        self.began_s = self.ready_s = self.heard_s = time.monotonic()
        self.timeout_s = HEARTBEAT_TIMEOUT_S
        self.log = log_path(assignment.config, worker)
        command = _COMMANDS.get(worker.partition(".")[0], ["capture", worker])
        with open_log(self.log) as log:
            started = _spawner.submit(
                subprocess.Popen,
                [*program, *command, "--supervised"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment_of(worker),
                text=True,
                encoding="utf-8",
                # Ctrl-C is ours to handle; see run_supervised for systems where it still reaches the process.
                start_new_session=os.name == "posix",
            )
            self.process: subprocess.Popen[str] = started.result()
        self._events = events
        send_line(self.process, msgspec.json.encode(assignment).decode())
        threading.Thread(target=self._follow, name=f"follow-{worker}", daemon=True).start()

    def note_ready(self) -> None:
        self.ready = True
        self.ready_s = self.heard_s = time.monotonic()

    def check_alive(self, ready_timeout_s: float) -> None:
        """Kill it if it hangs, or is not ready in time; its exit is then an event like any other."""
        now_s = time.monotonic()
        if self.hung:
            return
        if not self.ready and now_s - self.began_s > ready_timeout_s:
            self.hung = f"was not ready after {ready_timeout_s:.0f} s and was killed"
        elif self.ready and now_s - self.heard_s > self.timeout_s:
            self.hung = f"did not respond for {now_s - self.heard_s:.1f} s and was killed"
        if self.hung:
            self.process.kill()

    def cause(self, event: Event) -> str:
        """Why it has ended, as part of a sentence."""
        return self.hung or f"died (exit code {event.facts.get('code')})"

    def deaths(self, before: int) -> int:
        """Consecutive crashes including this one; the count restarts after a long run."""
        lived_s = time.monotonic() - self.ready_s if self.ready else 0.0
        return 1 if lived_s >= STABLE_AFTER_S else before + 1

    def start(self, start_ns: int) -> None:
        self.send({"start_ns": start_ns})

    def send(self, order: dict[str, Any]) -> None:
        send_line(self.process, msgspec.json.encode(order).decode())

    def release(self) -> None:
        """Close its pipe: it then ends, and can publish a last status."""
        close_input(self.process)

    def end(self, timeout_s: float) -> None:
        """Close its pipe and wait until it has ended; it is killed after `timeout_s`."""
        self.release()
        wait_or_kill(self.process, timeout_s)

    def sweep(self) -> None:
        """Kill what the process has left behind: a library may have forked, and a fork holds its sockets."""
        if os.name == "posix":
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _follow(self) -> None:
        assert self.process.stdout is not None
        pid = self.process.pid
        for line in self.process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            self.heard_s = time.monotonic()
            if "beat" in facts:
                self.timeout_s = float(facts["beat"])
                continue
            self._events.put(Event(self.worker, pid, str(facts.pop("state", "")), facts))
        self._events.put(Event(self.worker, pid, "exited", {"code": self.process.wait()}))


def environment_of(worker: str) -> dict[str, str]:
    """The environment variables of a worker's process."""
    environment = {**os.environ, **_ENVIRONMENT}
    if worker in _HUGE_PAGES:
        # The user's own settings come last, which count.
        settings = _HUGE_PAGES[worker], environment.get("GLIBC_TUNABLES")
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, settings))
    return environment


def send_line(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to a process's standard input, unless it is gone, which shows elsewhere."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(line + "\n")
        process.stdin.flush()


def close_input(process: subprocess.Popen[str]) -> None:
    """Close a process's standard input, unless it is closed. Processes of mien then end."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def wait_or_kill(process: subprocess.Popen[Any], timeout_s: float) -> None:
    """Wait until a process has ended; one that takes longer than `timeout_s` is killed."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout_s)


def open_log(path: Path) -> BinaryIO:
    """Open an empty log. One left by another user (`sudo mien run`) is removed first, if the folder is ours.

    Raises:
        MienError: it cannot be written.
    """
    try:
        try:
            return path.open("wb")
        except PermissionError:
            path.unlink()
            return path.open("wb")
    except OSError as error:
        raise MienError(
            f"cannot write the log {path}: {reason(error)}; remove it, or set XDG_STATE_HOME to another folder"
        ) from error


def log_path(config: Config, worker: str) -> Path:
    """The log file for the output of a process's libraries."""
    folder = platformdirs.user_log_path("mien", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MienError(
            f"cannot write logs to {folder}: {reason(error)}; make it writable or set XDG_STATE_HOME"
        ) from error
    return folder / f"{config.session}-{worker}.log"
