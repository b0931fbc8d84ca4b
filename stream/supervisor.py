"""Starts a session's processes, keeps them running, and ends them all.

Each process is this very program, started anew (`python -m mien capture video --supervised`): the same on every system,
and nothing is inherited by accident. Two pipes tie it to us, see `mien.stream.process`.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from mien.clock import NS_PER_MS, Clock
from mien.config import Config
from mien.errors import MienError, WorkerError
from mien.messages import ModalitySpec
from mien.models.checkpoint import check_extractors, load_checkpoint
from mien.stream.process import Assignment
from mien.stream.session import Session

_READY_TIMEOUT_S = 180.0  # the first start on a slow machine compiles the networks
_LEAD_MS = 150  # between the order to start and a clip's time zero: every process is listening by then
_START_STEP_NS = 100 * NS_PER_MS  # the longest slot of any modality
_STOP_S = 1.2
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_CRASH_LOOP = 5  # restarts without a minute of peace between them

# One thread a library: on a small machine threads that spin for work cost more than they bring.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOG_minloglevel": "2",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OPENCV_LOG_LEVEL": "ERROR",
    # No library may look for a newer model on its own.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Event:
    """Something a process said, or that it ended (state "exited")."""

    worker: str
    pid: int
    state: str
    facts: dict[str, Any] = field(default_factory=dict)


class Child:
    """One process of the session."""

    def __init__(self, worker: str, assignment: Assignment, events: queue.SimpleQueue[Event]) -> None:
        self.worker = worker
        self.ready = False
        self.ended = False
        self.log = log_path(assignment.config, worker)
        command = ["infer"] if worker == "inference" else ["capture", worker]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mien", *command, "--supervised"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_ENVIRONMENT},
                text=True,
                encoding="utf-8",
                # Ctrl-C is ours to handle; see run_supervised for systems where it still reaches the process.
                start_new_session=os.name == "posix",
            )
        self._events = events
        self._tell(msgspec.json.encode(assignment).decode())
        threading.Thread(target=self._follow, name=f"follow-{worker}", daemon=True).start()

    def start(self, start_ns: int) -> None:
        """Order the process to begin."""
        self._tell(json.dumps({"start_ns": start_ns}))

    def release(self) -> None:
        """Let go of the process: it ends by itself, with time to say goodbye."""
        stdin = self.process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(OSError):
                stdin.close()

    def sweep(self) -> None:
        """End what the process has left behind: a library may have forked, and a fork holds its sockets."""
        if os.name == "posix":
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it is gone; its exit is an event of its own
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        pid = self.process.pid
        for line in self.process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            self._events.put(Event(self.worker, pid, str(facts.pop("state", "")), facts))
        self._events.put(Event(self.worker, pid, "exited", {"code": self.process.wait()}))


class Supervisor:
    """Owns the processes of one session.

    Args:
        session: what to run.

    Attributes:
        model: checkpoint and engine, once inference is ready.
        ended: whether every clip has been played and predicted to its end; `predictions` is then how many there were.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.clock = Clock()
        self.model = ""
        self.ended = False
        self.predictions = 0
        self._assignment = Assignment(
            session.config, self.clock.anchor_ns, session.workers, session.absent, session.origin, session.label
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._children: dict[str, Child] = {}
        self._start_ns: int | None = None
        self._restarts: dict[str, list[float]] = {}
        self._due: dict[str, float] = {}
        self._notes: list[str] = []
        self._specs: dict[str, ModalitySpec] = {}

    def launch(self) -> None:
        """Start all processes. They load their models at the same time."""
        for worker in ("inference", *self.session.workers):
            self._spawn(worker)

    def waiting_for(self) -> list[str]:
        """The processes that are not ready yet."""
        return [worker for worker, child in self._children.items() if not child.ready]

    def wait_ready(self, stopping: threading.Event, timeout_s: float = _READY_TIMEOUT_S) -> bool:
        """Until every process is ready. False if told to stop before.

        Raises:
            MienError: as the process that failed said it; WorkerError if one died, or is not ready in time.
        """
        until_s = time.monotonic() + timeout_s
        while self.waiting_for():
            if stopping.is_set():
                return False
            if time.monotonic() > until_s:
                names = ", ".join(self.waiting_for())
                raise WorkerError(f"not ready after {timeout_s:.0f} s: {names}; see {self._log_folder()}")
            try:
                event = self._events.get(timeout=0.1)
            except queue.Empty:
                continue
            self._note_event(event)
            if event.state == "failed":
                raise _as_error(event)
            if event.state == "exited":
                raise WorkerError(self._obituary(event))
        # Before the first row is sent: a model that was trained on other rows would give wrong numbers, not errors.
        check_extractors(load_checkpoint(self.session.config.inference.checkpoint), self._specs.values())
        return True

    def start(self) -> None:
        """Order everybody to begin, at one and the same moment."""
        fast = self.session.config.clip.fast
        # On a multiple of every slot's length, a clip's rows fall into the same slots however and whenever it plays.
        first_ns = self.clock.now_ns() + _LEAD_MS * NS_PER_MS
        self._start_ns = 0 if fast else -(-first_ns // _START_STEP_NS) * _START_STEP_NS
        for child in self._children.values():
            child.start(self._start_ns)

    def tend(self) -> None:
        """Look after the processes: call it a few times a second.

        Raises:
            WorkerError: a process died that cannot be replaced: while a clip plays in full nothing may be missed.
        """
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            self._note_event(event)
            child = self._children.get(event.worker)
            if event.state == "exited" and child is not None and child.process.pid == event.pid and not child.ended:
                self._bury(event)
        now_s = time.monotonic()
        for worker in [worker for worker, due_s in self._due.items() if due_s <= now_s]:
            del self._due[worker]
            self._spawn(worker)
            if self._start_ns is not None:
                self._children[worker].start(self._start_ns)

    def stop(self) -> None:
        """End all processes: kindly, then firmly. Takes at most about two seconds."""
        self._due.clear()
        for child in self._children.values():
            child.release()
        until_s = time.monotonic() + _STOP_S
        for firmly in (False, True):
            for child in self._children.values():
                try:
                    child.process.wait(max(until_s - time.monotonic(), 0.01))
                except subprocess.TimeoutExpired:
                    child.process.kill() if firmly else child.process.terminate()
            until_s = time.monotonic() + 0.3
        for child in self._children.values():
            child.process.wait(2.0)
            child.sweep()

    def take_notes(self) -> list[str]:
        """What happened since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _spawn(self, worker: str) -> None:
        self._children[worker] = Child(worker, self._assignment, self._events)

    def _note_event(self, event: Event) -> None:
        child = self._children.get(event.worker)
        if child is None or child.process.pid != event.pid:
            return
        if event.state == "ready":
            child.ready = True
            if event.worker == "inference":
                self.model = str(event.facts.get("model", ""))
            if "spec" in event.facts:
                self._specs[event.worker] = msgspec.convert(event.facts["spec"], ModalitySpec)
        elif event.state == "ended":
            child.ended = True
            if event.worker == "inference":
                self.ended = True
                self.predictions = int(event.facts.get("predictions", 0))
        elif event.state == "failed" and self._start_ns is not None:
            self._notes.append(f"{event.worker}: {event.facts.get('error')}")

    def _bury(self, event: Event) -> None:
        if self.session.config.clip.fast:
            raise WorkerError(self._obituary(event))
        now_s = time.monotonic()
        recent = [at_s for at_s in self._restarts.get(event.worker, []) if now_s - at_s < 60]
        if len(recent) >= _CRASH_LOOP:
            self._notes.append(f"{self._obituary(event)}; it keeps dying, the others go on without it")
            del self._children[event.worker]
            return
        delay_s = _BACKOFF_S[min(len(recent), len(_BACKOFF_S) - 1)]
        self._restarts[event.worker] = [*recent, now_s]
        self._due[event.worker] = now_s + delay_s
        self._notes.append(f"{self._obituary(event)}; starting it again in {delay_s:g} s")

    def _obituary(self, event: Event) -> str:
        code = event.facts.get("code")
        return f"the {event.worker} process died (exit code {code}), see {self._children[event.worker].log}"

    def _log_folder(self) -> Path:
        return log_path(self.session.config, "inference").parent


def log_path(config: Config, worker: str) -> Path:
    """Where a process of the session writes what its libraries have to say."""
    folder = platformdirs.user_log_path("mien", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MienError(
            f"cannot write logs to {folder}: {error.strerror}; make it writable or set XDG_STATE_HOME"
        ) from error
    return folder / f"{config.session}-{worker}.log"


def _as_error(event: Event) -> MienError:
    error = MienError(str(event.facts.get("error", f"{event.worker} failed")))
    error.exit_code = int(event.facts.get("exit_code", 1))
    return error
