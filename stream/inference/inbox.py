"""What a session's workers send: decoded, checked for who may say it, and in our time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import zmq

from mien.clock import NS_PER_MS, Clock
from mien.config import Config
from mien.errors import WireError
from mien.messages import WORKERS, Cue, FeatureWindow, Status
from mien.stream.bus.clock_exchange import ClockExchange
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import decode_cue, decode_features, decode_status, topic
from mien.stream.inference.refusals import Refusals

NEVER_NS = (1 << 63) - 1


class Received(NamedTuple):
    """A message, the bytes that it came in, and when it came on our clock."""

    message: FeatureWindow | Status | Cue
    frames: list[bytes]
    received_ns: int


class Inbox:
    """The connections to a session's workers.

    Args:
        config: the session's.
        workers: whom to listen to.
        clock: ours.
        refusals: where what is not believed is counted.
        supervised: whether the workers of this machine share our clock.
        replayed: whether the senders are a player, which speaks for all, and gives cues.
    """

    def __init__(
        self,
        config: Config,
        workers: Collection[str],
        clock: Clock,
        refusals: Refusals,
        *,
        supervised: bool,
        replayed: bool,
    ) -> None:
        self._config = config
        self._workers = workers
        self._clock = clock
        self._refusals = refusals
        self._supervised = supervised
        self._replayed = replayed
        self._receivers: dict[str, Receiver] = {}
        self._exchanges: dict[str, ClockExchange] = {}
        self._newest: dict[str, tuple[int, int]] = {}

    def open(self, poller: zmq.Poller) -> dict[zmq.Socket[bytes], str]:
        """Connect to the workers; the sockets at which each is heard."""
        session, bus = self._config.session, self._config.bus
        prefixes = tuple(topic(kind, session) for kind in ("features", "status", "cue"))
        for worker in self._workers:
            receiver = Receiver(bus.address(worker), prefixes, bus.high_water_mark, bus.keys)
            self._receivers[worker] = receiver
            if self._is_elsewhere(worker):
                self._exchanges[worker] = ClockExchange(receiver, session, self._clock)
        # Only now: where one cannot be connected to, the poller knows of none.
        for receiver in self._receivers.values():
            poller.register(receiver.socket, zmq.POLLIN)
        return {receiver.socket: worker for worker, receiver in self._receivers.items()}

    def close(self) -> None:
        """Disconnect."""
        for receiver in self._receivers.values():
            receiver.close()

    def tend(self) -> None:
        """Look after the connections, when it is time to."""
        for receiver in self._receivers.values():
            receiver.tend()

    def ask(self) -> int:
        """Ask workers with clocks of their own for the time, if it is time to. Returns when it is time again."""
        for exchange in self._exchanges.values():
            exchange.tick()
        return min((exchange.due_ns for exchange in self._exchanges.values()), default=NEVER_NS)

    def take(self, worker: str, limit: int) -> Iterator[Received]:
        """What has come from a worker, oldest first; what cannot be believed is counted and left out."""
        receiver = self._receivers[worker]
        for frames in receiver.drain(limit):
            received_ns = self._clock.now_ns()
            try:
                message = self._read(worker, frames, received_ns)
            except WireError as error:
                said = f"refused a message from {receiver.endpoint}: {error}"
                self._refusals.note(str(error).split(":")[0], said)
                continue
            if message is not None:
                yield Received(message, frames, received_ns)

    def clock_offsets(self) -> dict[str, float]:
        """Per worker with a clock of its own, how far that is ahead of ours, and how wrong this can be, in ms."""
        detail = {}
        for worker, exchange in self._exchanges.items():
            estimate = exchange.estimate()
            if estimate is not None:
                detail[f"{worker}.clock_offset_ms"] = round(estimate[0] / NS_PER_MS, 3)
                detail[f"{worker}.clock_error_ms"] = round(estimate[1] / NS_PER_MS, 3)
        return detail

    def _read(self, worker: str, frames: list[bytes], received_ns: int) -> FeatureWindow | Status | Cue | None:
        kind = frames[0].partition(b"/")[0]
        if kind == b"status":
            status = decode_status(frames)
            self._check_sender(worker, status.worker)
            return status
        if kind == b"cue":
            cue = decode_cue(frames)
            if not self._replayed:
                raise WireError("malformed: a cue, but this is no replay")
            return cue
        if kind == b"clock":
            if worker in self._exchanges:
                self._exchanges[worker].hear(frames, received_ns)
            return None
        message = decode_features(frames)
        self._check_sender(worker, message.modality)
        number = message.run, message.seq
        if self._newest.get(message.modality) == number:
            return None  # sent again, for another new subscriber, as the protocol says
        self._newest[message.modality] = number
        return self._in_our_time(worker, message)

    def _check_sender(self, worker: str, said: str) -> None:
        """A process speaks for itself: what it says of others could silence them."""
        if said not in (worker, WORKERS[worker]) and not self._replayed:
            raise WireError(f"foreign: the {worker} worker does not speak for {said}")

    def _is_elsewhere(self, worker: str) -> bool:
        """Whether a worker has a clock of its own: those of one supervisor share one."""
        if self._config.clip.fast:
            return False
        return not self._supervised or bool(getattr(self._config.bus.workers, worker, ""))

    def _in_our_time(self, worker: str, message: FeatureWindow) -> FeatureWindow:
        exchange = self._exchanges.get(worker)
        if exchange is None:
            return message
        ours = exchange.to_ours(message)
        if ours is None:
            raise WireError(f"unsynchronised: the clock of the {worker} worker is not known yet")
        return ours
