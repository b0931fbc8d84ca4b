"""A supervised process's side: its orders, shutdown, and heartbeats.

Under a supervisor, a process reads JSON lines from standard input: first the configuration, later the time to start.
The pipe also ties their lifetimes: when the supervisor goes away, for any reason, the pipe closes and the process
ends. It reports on standard output with one JSON line per change of state. The same on every system: no signals
between processes, nothing inherited but two pipes.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from mien.clock import Clock
from mien.config import Config
from mien.errors import MienError
from mien.messages import Origin, Status

_GRACE_S = 1.5
_BEAT_S = 0.1
HEARTBEAT_TIMEOUT_S = 1.5  # heartbeat timeout, after which a process counts as hung
BUSY_TIMEOUT_S = 12.0  # likewise, during calls that may block: opening a device, a slow reader of a clip
_WRITE_TIMEOUT_S = 1.0  # write timeout for a supervisor that does not read
_PR_SET_PDEATHSIG = 1


class Assignment(msgspec.Struct, frozen=True):
    """The first line from a supervisor to a process.

    Attributes:
        workers: capture workers that run in this session.
        absent: why, for each modality that is not captured.
        origin: source of the video and audio; "replay": features come from a recording, predicted by cue.
        label: its name, for display.
        others: further sessions, with workers elsewhere, served by an inference process.
        endpoint: where one of several inference processes publishes; a proxy merges them at one address.
        room: capacity of an inference process whose sessions come and go by `Order`.
        run: of the session's predictions; 0 picks a random one.
    """

    config: Config
    anchor_ns: int
    workers: tuple[str, ...] = ()
    absent: dict[str, str] = {}
    origin: Origin = "live"
    label: str = ""
    others: tuple[Config, ...] = ()
    endpoint: str = ""
    room: int = 0
    run: int = 0


class Order(msgspec.Struct, frozen=True):
    """An instruction from the supervisor to a running inference process.

    Attributes:
        status: to publish, since a supervisor has no socket of its own.
        worker, fault: why this worker's modality must be masked. No fault: its process has recovered.
        dead: the process is gone for good: the mask stays until its successor sends rows.
        session: of the worker; empty for the only session, or the first.
        serve: a session to predict from now on, in a process with room. release: name of the one to drop.
    """

    status: Status | None = None
    worker: str | None = None
    fault: str | None = None
    dead: bool = False
    session: str = ""
    serve: Assignment | None = None
    release: str = ""


class Control:
    """A process's connection to the supervisor that started it, if any.

    Attributes:
        stopping: set when the process should end.
        started: set when it may begin; `start_ns` is then the session time of the clip's start.
        supervised: whether a supervisor started it, whose clock it shares.
    """

    def __init__(self, assignment: Assignment, supervised: bool) -> None:
        self.assignment = assignment
        self.clock = Clock(assignment.anchor_ns)
        self.run = assignment.run or secrets.randbits(48)
        self.stopping = threading.Event()
        self.started = threading.Event()
        self.start_ns = 0
        self.supervised = supervised
        self._out = _private_stdout() if supervised else None
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._beat_s, self._timeout_s = 0.0, HEARTBEAT_TIMEOUT_S
        self._on_ready: Callable[[], object] | None = None

    def report_state(self, state: str, **facts: Any) -> None:
        """Report a change of state to the supervisor."""
        if state == "ready" and self._on_ready is not None:
            self._on_ready()
        deadline_s = time.monotonic() + _WRITE_TIMEOUT_S
        while not self._write({"state": state, **facts}) and time.monotonic() < deadline_s:
            time.sleep(0.02)

    def beat(self, timeout_s: float = HEARTBEAT_TIMEOUT_S) -> None:
        """Send a heartbeat, only from the loop that does the work: called often, rate-limited.

        Args:
            timeout_s: of the next one, after which this process counts as hung.
        """
        now_s = time.monotonic()
        if now_s - self._beat_s >= _BEAT_S or timeout_s != self._timeout_s:
            self._beat_s, self._timeout_s = now_s, timeout_s
            self._write({"beat": timeout_s})

    def take_orders(self) -> Iterator[Order]:
        """Pending orders for inference, oldest first."""
        while not self._orders.empty():
            yield self._orders.get_nowait()

    def _write(self, line: dict[str, Any]) -> bool:
        """Write a line; False if the supervisor does not read: a stopped one must not block us."""
        if self._out is None:
            return True
        try:
            # Short enough for an atomic pipe write.
            os.write(self._out, json.dumps(line).encode()[:4000] + b"\n")
        except BlockingIOError:
            return False
        except OSError:
            self.stopping.set()
        return True

    def begin(self, on_ready: Callable[[], object] | None = None) -> None:
        """Start at once, for a process without a supervisor. `on_ready`: called once it publishes."""
        self._on_ready = on_ready
        self.start_ns = 0 if self.assignment.config.clip.fast else self.clock.now_ns()
        self.started.set()

    def for_config(self, config: Config) -> Control:
        """A view of this process for another session that it serves, with all workers elsewhere."""
        return self.for_assignment(msgspec.structs.replace(self.assignment, config=config, workers=(), absent={}))

    def for_assignment(self, assignment: Assignment) -> Control:
        """A view of this process for another session that it serves, started and stopped together with this one."""
        other = Control(msgspec.structs.replace(assignment, anchor_ns=self.assignment.anchor_ns), False)
        other.stopping, other.started, other.start_ns = self.stopping, self.started, self.start_ns
        return other

    def listen(self, lines: Iterable[bytes]) -> None:
        """Read the supervisor's pipe until it closes, then stop the process, by force if needed."""
        for line in lines:
            order = json.loads(line)
            if "start_ns" in order:
                self.start_ns = int(order["start_ns"])
                self.started.set()
            elif "order" in order:
                self._orders.put(msgspec.convert(order["order"], Order))
        self.stopping.set()
        time.sleep(_GRACE_S)
        # Blocked in a driver or a native library, with no supervisor left to kill it.
        os._exit(0)


def run_supervised(body: Callable[[Control], None]) -> None:
    """Run a process body under a supervisor; a failure is reported as one JSON line, not as a traceback."""
    # Ctrl-C reaches the whole terminal group; only the supervisor decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines = sys.stdin.buffer  # UTF-8, independent of the terminal's encoding
    first = lines.readline()
    if not first:
        return
    _die_with_parent()
    control = Control(msgspec.json.decode(first, type=Assignment), supervised=True)
    threading.Thread(target=control.listen, args=(lines,), name="lifeline", daemon=True).start()
    try:
        body(control)
    except MienError as error:
        control.report_state("failed", error=str(error)[:1000], exit_code=error.exit_code)
        sys.exit(error.exit_code)
    except BaseException as error:
        control.report_state("failed", error=f"{type(error).__name__}: {error}"[:1000], exit_code=1)
        raise
    control.report_state("stopped")


def _private_stdout() -> int:
    """Reserve standard output for our lines: library output, even from C, is redirected to standard error."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    if os.name == "posix":
        os.set_blocking(private, False)
    return private


def _die_with_parent() -> None:
    """Have Linux kill this process with its supervisor, even while it is stopped or hangs in a driver.

    Elsewhere only the pipe does that, for processes that are running.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_alone(
    config: Config,
    body: Callable[[Control], None],
    clock: Clock | None = None,
    on_ready: Callable[[], object] | None = None,
) -> None:
    """Run a process body standalone, until Ctrl-C, SIGTERM or the end of its clip; on its own clock.

    `on_ready` is called once it publishes.
    """
    control = Control(Assignment(config, (clock or Clock()).anchor_ns), supervised=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: control.stopping.set())
    control.begin(on_ready)
    body(control)
