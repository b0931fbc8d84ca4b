"""A pool: one inference process whose sessions come and go, and its reports."""

from __future__ import annotations

import math
import queue
import threading
import time

import msgspec
import zmq

from mien.clock import read_anchor_ns
from mien.config import BusConfig, Config
from mien.errors import WireError
from mien.messages import Status
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import decode_status
from mien.stream.fleet.node import NodeKeys, Ordered
from mien.stream.fleet.orders import FULL, MemberOrder, PoolReport, Served
from mien.stream.processes.child import Child, Event
from mien.stream.processes.control import Assignment, Order
from mien.stream.processes.priority import set_background

_READY_S = 180.0
_STOP_S = 2.0
_POLL_MS = 100
_RETRY_S = 2.0  # before retrying a refused session


class PoolHost(Ordered[MemberOrder[Assignment]]):
    """Runs `mien infer` with room for sessions, and assigns sessions to it.

    Args:
        fleet, host, guarded: as for `CaptureHost`. name: the pool's. base: the process's configuration.
        room: session capacity. spare: whether no session is waiting, so that it may start at low priority.
    """

    def __init__(
        self,
        fleet: str,
        name: str,
        host: str,
        base: bytes,
        room: int,
        *,
        guarded: bool,
        about: bytes = b"",
        spare: bool = False,
    ) -> None:
        super().__init__(NodeKeys(fleet), MemberOrder[Assignment], about)
        keys = self._keys.folder if guarded else ""
        config = msgspec.json.decode(base, type=Config)
        bus = BusConfig(host=host, keys=keys, high_water_mark=config.bus.high_water_mark)
        self._config = msgspec.structs.replace(config, session=f"{fleet}-{name}", bus=bus)
        any_port = bus.endpoint().rpartition(":")[0] + ":*"
        assignment = Assignment(self._config, read_anchor_ns(), endpoint=any_port, room=room)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._child = Child("inference", assignment, self._events)
        self._in_background = spare
        set_background(self._child.process.pid, background=spare)
        self._assigned: dict[str, Assignment] = {}
        self._sent: dict[str, Assignment] = {}
        self._refused: dict[str, tuple[int, str, float]] = {}  # run, why, and when to try again
        self._statuses: dict[str, Status] = {}
        self._endpoint = self._model = self._error = ""
        self._dead = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pool", daemon=True)
        self._thread.start()

    def _apply(self, order: MemberOrder[Assignment]) -> PoolReport:
        if self._in_background and (order.tasks or self._child.ready):
            self._in_background = False
            set_background(self._child.process.pid, background=False)
        if order.tasks is not None and order.since in (FULL, self._version):
            self._version = order.version
            self._assigned = order.applied(self._assigned)
        self._match()
        if self._child.ready:
            for each in order.orders:
                if each.session in self._sent:
                    self._child.send({"order": each})
        return self._report()

    def processes(self) -> list[int]:
        return [*super().processes(), self._child.process.pid]

    def close(self) -> None:
        """End the process, by force if needed."""
        self._stopping.set()
        self._child.end(_STOP_S)
        self._child.sweep()
        self._thread.join(2.0)
        for stream in (self._child.process.stdin, self._child.process.stdout):
            if stream is not None:
                stream.close()

    def _match(self) -> None:
        if not self._child.ready or self._dead:
            return
        for name in self._sent.keys() - self._assigned.keys():
            self._child.send({"order": Order(release=name)})
            del self._sent[name]
        for name, assignment in self._assigned.items():
            _, _, again_s = self._refused.get(name, (0, "", math.inf))
            if self._sent.get(name) != assignment or time.monotonic() >= again_s:
                self._statuses.pop(name, None)
                self._refused.pop(name, None)
                bus = msgspec.structs.replace(assignment.config.bus, keys=self._config.bus.keys)
                local = msgspec.structs.replace(assignment.config, bus=bus)
                self._child.send({"order": Order(serve=msgspec.structs.replace(assignment, config=local))})
                self._sent[name] = assignment

    def _report(self) -> PoolReport:
        state = "dead" if self._dead else "ready" if self._child.ready else "starting"
        newest = max(self._statuses.values(), key=lambda status: status.t_ns, default=None)
        return PoolReport(
            version=self._version,
            key=self._keys.public,
            state=state,  # type: ignore[arg-type]
            endpoint=self._endpoint,
            model=self._model,
            error=self._error,
            cpu_percent=(newest and newest.cpu_percent) or 0.0,
            rss_mb=(newest and newest.rss_mb) or 0.0,
            sessions={name: self._served(name, assignment) for name, assignment in self._sent.items()},
        )

    def _served(self, name: str, assignment: Assignment) -> Served:
        run, error, _ = self._refused.get(name, (0, "", 0.0))
        if error and run == assignment.run:
            return Served(run, "failed", error=error)
        status = self._statuses.get(name)
        if status is None or status.run != assignment.run:
            return Served(assignment.run)
        absent = {key.removeprefix("absent."): str(why) for key, why in status.detail.items() if key[:7] == "absent."}
        return Served(
            status.run,
            status.state,
            status.fps,
            _number(status.detail.get("latency_p50_ms")),
            _number(status.detail.get("latency_p99_ms")),
            int(_number(status.detail.get("predictions")) or 0),
            status.last_error or "",
            absent,
            status.drops,
        )

    def _follow(self) -> None:
        """Receive the process's messages, from its pipe and its socket."""
        receiver: Receiver | None = None
        while not self._stopping.is_set() and not self._dead:
            while not self._events.empty():
                event = self._events.get_nowait()
                if event.state == "bound":
                    endpoint = str(event.facts["endpoint"])
                    receiver = Receiver(endpoint, (b"status/",), 4096, self._config.bus.keys)
                    self._endpoint = endpoint
                self._note(event)
            self._child.check_alive(_READY_S)
            if receiver is None:
                time.sleep(_POLL_MS / 1e3)
                continue
            receiver.socket.poll(_POLL_MS, zmq.POLLIN)
            for frames in receiver.drain(4096):
                self._receive(frames)
        if receiver is not None:
            receiver.close()

    def _receive(self, frames: list[bytes]) -> None:
        if not frames[0].endswith(b"/inference"):
            return
        try:
            status = decode_status(frames)
        except WireError:
            return
        with self._lock:
            if status.session in self._sent:
                self._statuses[status.session] = status

    def _note(self, event: Event) -> None:
        with self._lock:
            if event.state == "ready":
                self._child.note_ready()
                self._model = str(event.facts.get("model", ""))
                self._child.start(0)
                self._match()
            elif event.state == "refused":
                name, again_s = str(event.facts["session"]), time.monotonic() + _RETRY_S
                self._refused[name] = int(event.facts["run"]), str(event.facts["error"]), again_s
            elif event.state == "failed":
                self._error = str(event.facts.get("error"))
            elif event.state == "exited":
                self._error = self._error or f"the inference process {self._child.cause(event)}"
                self._dead = True


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
