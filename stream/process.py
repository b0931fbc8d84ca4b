"""What every mien process has in common: how it is told what to do, when to stop, and how it says how it is.

Under a supervisor, a process reads JSON lines from its standard input: first the configuration, later the moment to
start. The pipe is also a lifeline: when the supervisor goes away, however it goes, the pipe ends and so does the
process. It answers on standard output with one JSON line for each change of state. The same on every system: no
signals between processes, nothing inherited but two pipes.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import msgspec

from mien.clock import Clock
from mien.config import Config
from mien.errors import MienError

_GRACE_S = 1.5


class Assignment(msgspec.Struct, frozen=True):
    """The first line that a supervisor writes to a process.

    Attributes:
        config: the session's configuration.
        anchor_ns: the session clock's anchor.
        workers: capture workers that run in this session.
        absent: for each modality that nobody captures, why.
    """

    config: Config
    anchor_ns: int
    workers: tuple[str, ...] = ()
    absent: dict[str, str] = {}


class Control:
    """A process's view of whoever started it.

    Attributes:
        stopping: set when the process should end.
        started: set when it may begin; `start_ns` is then the session time of the clip's beginning.
    """

    def __init__(self, assignment: Assignment, supervised: bool) -> None:
        self.assignment = assignment
        self.clock = Clock(assignment.anchor_ns)
        self.run = secrets.randbits(48)
        self.stopping = threading.Event()
        self.started = threading.Event()
        self.start_ns = 0
        self._out = _private_stdout() if supervised else None

    def say(self, state: str, **facts: Any) -> None:
        """Tell the supervisor of a change of state."""
        if self._out is None:
            return
        try:
            self._out.write(json.dumps({"state": state, **facts}) + "\n")
            self._out.flush()
        except OSError:
            self.stopping.set()

    def begin(self) -> None:
        """Start at once, as a process that was started alone does."""
        self.start_ns = 0 if self.assignment.config.clip.fast else self.clock.now_ns()
        self.started.set()

    def listen(self, lines: TextIO) -> None:
        """Follow the supervisor's pipe until it ends, then stop the process, by force if need be."""
        for line in lines:
            order = json.loads(line)
            if "start_ns" in order:
                self.start_ns = int(order["start_ns"])
                self.started.set()
            elif order.get("stop"):
                break
        self.stopping.set()
        time.sleep(_GRACE_S)
        # Blocked in a driver or a native library: nobody is left to wait for it.
        os._exit(0)


def run_supervised(body: Callable[[Control], None]) -> None:
    """Run a process body under a supervisor; a failure ends as one JSON line for it, not as a traceback."""
    # Ctrl-C reaches the whole terminal group; the supervisor alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = sys.stdin.readline()
    if not first:
        return
    control = Control(msgspec.json.decode(first.encode(), type=Assignment), supervised=True)
    threading.Thread(target=control.listen, args=(sys.stdin,), name="lifeline", daemon=True).start()
    try:
        body(control)
    except MienError as error:
        control.say("failed", error=str(error), exit_code=error.exit_code)
        sys.exit(error.exit_code)
    except BaseException as error:
        control.say("failed", error=f"{type(error).__name__}: {error}", exit_code=1)
        raise
    control.say("stopped")


def _private_stdout() -> TextIO:
    """Standard output for our lines alone: whatever libraries print, also from C, goes to standard error."""
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def run_alone(config: Config, body: Callable[[Control], None], workers: tuple[str, ...] = ()) -> None:
    """Run a process body by itself, until Ctrl-C, SIGTERM or the end of its clip."""
    control = Control(Assignment(config, Clock().anchor_ns, workers), supervised=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: control.stopping.set())
    control.begin()
    body(control)
