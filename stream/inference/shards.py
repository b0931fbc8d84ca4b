"""Shards sessions over several inference processes, behind one address for subscribers.

Each process serves its share like a single one, and publishes on its own local address; its messages are forwarded
unchanged, without copying payloads. A process that dies or hangs is restarted, and its sessions report that meanwhile.
"""

from __future__ import annotations

import queue
import time
import zlib
from collections.abc import Sequence

import msgspec
import zmq

from mien.config import Config
from mien.errors import WorkerError
from mien.messages import Status
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import encode_status
from mien.stream.processes.child import Child, Event, backoff_s
from mien.stream.processes.control import Control

_READY_S = 180.0
_STOP_S = 2.0
_POLL_MS = 20
_AT_ONCE = 4096


def share_out(configs: Sequence[Config], processes: int) -> list[list[Config]]:
    """Distribute sessions over processes, evenly and deterministically: round-robin in the order of name hashes."""
    order = sorted(configs, key=lambda config: (zlib.crc32(config.session.encode()), config.session))
    return [share for number in range(processes) if (share := order[number::processes])]


def infer_in_processes(control: Control, others: Sequence[Config], processes: int) -> None:
    """Run this many inference processes until told to stop.

    Raises:
        MienError: a process cannot start, with its reason, or the port is in use.
    """
    config = control.assignment.config
    configs = [config, *others]
    publisher = Publisher(config.bus.endpoint("inference"), config.bus, sessions=len(configs))
    publisher.on_clock_request = lambda question: answer_question(question, control.run, control.clock)
    shards: list[_Shard] = []
    try:
        shards += [
            _Shard(f"inference.{number}", share, control, publisher)
            for number, share in enumerate(share_out(configs, processes))
        ]
        _serve(control, publisher, shards)
    finally:
        for shard in shards:
            shard.release()
        for shard in shards:
            shard.close()
        publisher.close()


def _serve(control: Control, publisher: Publisher, shards: Sequence[_Shard]) -> None:
    poller = zmq.Poller()
    poller.register(publisher.socket, zmq.POLLIN)
    announced = False
    while not control.stopping.is_set():
        control.beat()
        for shard in shards:
            shard.tend(poller)
        if not announced and all(shard.model for shard in shards):
            announced = True
            control.report_state("ready", model=shards[0].model)
        for shard in shards:
            shard.start_if(begun=announced and control.started.is_set())
        poller.poll(_POLL_MS)
        publisher.service()
        for shard in shards:
            shard.forward()


class _Shard:
    """One process and its sessions.

    Attributes:
        model: checkpoint and engine; empty until the process was first ready.
    """

    def __init__(self, name: str, configs: Sequence[Config], control: Control, publisher: Publisher) -> None:
        self.model = ""
        self._name, self._configs, self._control, self._publisher = name, configs, control, publisher
        self._assignment = msgspec.structs.replace(
            control.assignment, config=configs[0], others=tuple(configs[1:]), endpoint="tcp://127.0.0.1:*"
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._receiver: Receiver | None = None
        self._parts: set[bytes] = set()  # topics requested from the process
        self._deaths = self._restarts = 0
        self._due_s: float | None = None
        self._started = False
        self._child = self._spawn()

    def tend(self, poller: zmq.Poller) -> None:
        """Process its messages, and restart it if necessary.

        Raises:
            MienError: it cannot start.
        """
        while not self._events.empty():
            event = self._events.get_nowait()
            if event.pid == self._child.process.pid:
                self._follow(event, poller)
        now_s = time.monotonic()
        if self._due_s is not None and now_s >= self._due_s:
            self._due_s = None
            self._child = self._spawn()
        if self._due_s is None:
            self._child.check_alive(_READY_S)

    def start_if(self, *, begun: bool) -> None:
        """Tell the process to begin, once all have begun and it is ready."""
        if begun and self._child.ready and not self._started:
            self._started = True
            self._child.start(self._control.start_ns)

    def forward(self) -> None:
        """Forward what the process has published, and request from it the parts that subscribers want."""
        if self._receiver is not None:
            for topic in self._parts ^ self._publisher.parts.keys():
                if topic in self._parts:
                    self._receiver.socket.unsubscribe(topic)
                else:
                    self._receiver.socket.subscribe(topic)
            self._parts = set(self._publisher.parts)
            self._publisher.forward(self._receiver.drain_frames(_AT_ONCE))

    def release(self) -> None:
        self._child.release()

    def close(self) -> None:
        self._child.end(_STOP_S)
        self.forward()
        self._child.sweep()
        self._disconnect(None)

    def _spawn(self) -> Child:
        self._started = False
        return Child(self._name, self._assignment, self._events)

    def _follow(self, event: Event, poller: zmq.Poller) -> None:
        if event.state == "bound":
            self._disconnect(poller)
            bus = self._configs[0].bus
            queued = bus.high_water_mark * len(self._configs)
            self._receiver = Receiver(str(event.facts["endpoint"]), (b"",), queued, bus.keys)
            poller.register(self._receiver.socket, zmq.POLLIN)
        elif event.state == "ready":
            self._child.note_ready()
            self.model = str(event.facts.get("model", ""))
        elif event.state == "failed" and not self.model:
            raise event.as_error()
        elif event.state == "exited":
            self._on_exit(event, poller)

    def _on_exit(self, event: Event, poller: zmq.Poller) -> None:
        cause = self._child.cause(event)
        if not self.model:
            raise WorkerError(f"the process {self._name} {cause}; see {self._child.log}")
        now_s = time.monotonic()
        self._child.sweep()
        self._disconnect(poller)
        self._deaths = self._child.deaths(self._deaths)
        self._restarts += 1
        self._due_s = now_s + backoff_s(self._deaths)
        for config in self._configs:
            status = Status(
                session=config.session,
                worker="inference",
                run=self._control.run,
                t_ns=self._control.clock.now_ns(),
                state="failed",
                pid=event.pid,
                last_error=f"the inference process {cause}; it is being restarted",
                detail={"restarts": self._restarts},
            )
            self._publisher.send(encode_status(status))

    def _disconnect(self, poller: zmq.Poller | None) -> None:
        if self._receiver is not None:
            self.forward()
            if poller is not None:
                poller.unregister(self._receiver.socket)
            self._receiver.close()
            self._receiver = None
            self._parts = set()
