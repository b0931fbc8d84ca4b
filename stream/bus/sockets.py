"""Sockets of the bus: a publisher that remembers the last message of each topic, and a receiver that drains.

What libzmq does, and why this is built as it is: `ZMQ_CONFLATE` does not work with messages of several frames, so
draining to the newest is done by the reader; a full queue keeps the OLD messages, so queues are short; a new SUB misses
what was sent before its subscription arrived, so the publisher (XPUB sees subscriptions) sends the last values again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zmq
import zmq.backend

from mien.config import BusConfig
from mien.errors import BusError, KeysError
from mien.messages import Prediction
from mien.stream.bus.choices import MAX_CHOICE_BYTES
from mien.stream.bus.connection import Connection
from mien.stream.bus.curve import Guard, host_of, is_guarded, is_loopback
from mien.stream.bus.parts import KIND, Part, read_part
from mien.stream.bus.poller import has_message

_RESEND_INTERVAL_S = 0.02  # at most 50 resends a second, however many subscriptions
_MAX_TOPICS = 256  # of each session
MAX_SUBSCRIPTIONS = 1024
FLEET_SUBSCRIPTIONS = 16 * MAX_SUBSCRIPTIONS  # at a gateway, of subscribers to thousands of sessions
_MAX_PARTS = 64  # distinct ones: each is encoded separately
_MAX_EVENTS = 1000  # per call, so that a storm of subscriptions cannot block the publisher
READ_AHEAD = 16  # libzmq reads all waiting subscriptions at once; with 1000 ahead, a fast flood never lets it return
_PATIENCE_S, _MOST_QUEUED = 5.0, 1 << 15  # with a subscriber that does not read
_REBIND_S = 1.5
Message = list[bytes] | list[zmq.Frame]
_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_send_frame: Callable[..., Any] = zmq.backend.Socket.send  # `send_multipart` calls it, and costs nine times as much
_LOOK_INTERVAL_S = 0.5  # between two checks for revoked keys


class Publisher:
    """An XPUB socket with the last value of every topic.

    Args:
        config: high-water mark, and the folder of keys: beyond this machine, machines without one cannot connect.
        lossless: wait for slow subscribers instead of dropping (playing a clip as fast as possible). For one that has
            not read for five seconds, twice as many messages are queued; at 32768 it loses them from then on.
        sessions: how many publish here; each has the high-water mark and its topics for itself.
        most_subscriptions: different ones; more are a flood. stop_flood: ends one, instead of closing all connections.

    Attributes:
        subscriptions: prefixes subscribed to, with how many connections do. dropped: messages no connection took.
        parts: of predictions that are subscribed to, by topic.
        subscription_flood_resets: how often all connections were closed because one had far too many subscriptions.
        on_clock_request: answers clock questions, see `mien.stream.bus.clock_exchange`; None leaves one to others.
        on_choice: handles choices (`mien.stream.bus.choices`), each a frame, and whether it came from this machine.

    Raises:
        BusError: the port is in use, or the address is beyond this machine and there are no keys.
    """

    def __init__(
        self,
        endpoint: str,
        config: BusConfig,
        *,
        lossless: bool = False,
        sessions: int = 1,
        most_subscriptions: int = MAX_SUBSCRIPTIONS,
        stop_flood: Callable[[], None] | None = None,
    ) -> None:
        self.endpoint, self._lossless = endpoint, lossless
        self._most_subscriptions, self._stop_flood = most_subscriptions, stop_flood or self._rebind
        self._max_topics = _MAX_TOPICS * sessions
        self.subscriptions: dict[bytes, int] = {}
        self.dropped = self.subscription_flood_resets = self._questions = 0
        self._last: dict[bytes, Message] = {}
        self._answers: dict[bytes, Callable[[], list[bytes] | None]] = {}
        self.parts: dict[bytes, Part] = {}
        self.on_clock_request: Callable[[bytes], list[bytes] | None] | None = None
        self.on_choice: Callable[[bytes, bool], None] | None = None
        self._due: set[bytes] = set()
        self._resent_s = 0.0
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.SNDHWM, config.high_water_mark * sessions)
        self.socket.setsockopt(zmq.RCVHWM, READ_AHEAD)
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        # Subscribers send only topics, choices, or the CURVE handshake.
        self.socket.setsockopt(zmq.MAXMSGSIZE, 1024 if is_guarded(endpoint, config.keys) else MAX_CHOICE_BYTES)
        self.socket.setsockopt(zmq.XPUB_NODROP, int(lossless))
        self.socket.setsockopt(zmq.IPV6, int(":" in host_of(endpoint)))
        self._guard = self._guarded(config) if is_guarded(endpoint, config.keys) else None
        self._looked_s = time.monotonic()
        self._bind()

    def send(self, frames: list[bytes], *, keep: bool = True) -> None:
        """Publish a message, and keep it as the last value of its topic."""
        self.service()
        self._publish(frames[0], frames, keep=keep)

    def send_all(self, messages: Iterable[list[bytes]]) -> None:
        """Publish and keep messages, as `send` does, with less overhead per message."""
        self.service()
        # All are made before the first is sent: libzmq's thread is then woken once, not by each of them.
        for frames in list(messages):
            self._publish(frames[0], frames)

    def send_parts(self, prediction: Prediction) -> None:
        """Publish the parts of a prediction that subscribers ask for."""
        for part in self.parts.values():
            frames = part.message(prediction)
            if frames is not None:
                self._send(frames)

    def forward(self, messages: Iterable[list[zmq.Frame]]) -> None:
        """Publish and keep messages of another publisher, as `send` does, without copying their frames."""
        for frames in messages:
            self._publish(frames[0].bytes, frames)

    @property
    def address(self) -> str:
        """Where it is bound, with the port that the system chose for "*"."""
        return self.socket.get_string(zmq.LAST_ENDPOINT)

    def forget(self, session: str) -> None:
        """Stop resending messages of a session that is published elsewhere from now on."""
        for name in [name for name in self._last if name.split(b"/")[1:2] == [session.encode()]]:
            del self._last[name]
            self._due.discard(name)

    def answer(self, topic: bytes, make: Callable[[], list[bytes] | None]) -> None:
        """Have a message made for each subscription to a topic by name; wildcard subscriptions do not trigger it."""
        self._answers[topic] = make

    def service(self) -> None:
        """Answer new subscriptions with last values. Called by `send`; call it too while nothing is sent."""
        for _ in range(_MAX_EVENTS):
            if not has_message(self.socket):
                break
            frame = self.socket.recv(_NOW, copy=False)
            event = frame.bytes
            if not event or event[0] not in (0, 1):
                if self.on_choice is not None and event.startswith(b"{"):
                    self.on_choice(event, is_loopback(str(frame.get("Peer-Address"))))
                continue
            prefix = event[1:]
            if prefix.startswith(b"clock/"):
                self._questions = max(self._questions + (1 if event[0] else -1), 0)
                make = self.on_clock_request if event[0] == 1 else None
                if make is not None and (answer := make(prefix)) is not None:
                    self._send(answer)
                continue
            if event[0] == 1:
                self.subscriptions[prefix] = self.subscriptions.get(prefix, 0) + 1
                if prefix.startswith(KIND) and len(self.parts) < _MAX_PARTS and (part := read_part(prefix)) is not None:
                    self.parts.setdefault(prefix, part)
                self._due.update(topic for topic in self._last if topic.startswith(prefix))
                self._due.update(topic for topic in self._answers if b"/" in prefix and topic.startswith(prefix))
            elif prefix in self.subscriptions:
                self.subscriptions[prefix] -= 1
                if self.subscriptions[prefix] <= 0:
                    del self.subscriptions[prefix]
                    self.parts.pop(prefix, None)
        if len(self.subscriptions) + self._questions > self._most_subscriptions:
            # libzmq would keep them all, 10 KB each. It drops them with the connections; honest subscribers reconnect.
            self.subscription_flood_resets += 1
            self.subscriptions.clear()
            self.parts.clear()
            self._questions = 0
            self._stop_flood()
        now_s = time.monotonic()
        if self._guard is not None and now_s - self._looked_s >= _LOOK_INTERVAL_S:
            self._looked_s = now_s
            if self._guard.has_changed():
                self._rebind()
        if self._due and now_s - self._resent_s >= _RESEND_INTERVAL_S:
            self._resent_s = now_s
            due, self._due = self._due, set()
            for topic in due:
                frames = self._last[topic] if topic in self._last else self._answers[topic]()
                if frames is not None:
                    self._send(frames)

    def has_subscriber(self, topic: bytes, *, by_name: bool = False) -> bool:
        """Whether there is a subscription to a topic now; `by_name`: to its kind, not one to everything."""
        self.service()
        kind = topic[: topic.index(b"/") + 1] if by_name else b""
        return any(prefix.startswith(kind) and topic.startswith(prefix) for prefix in self.subscriptions)

    @property
    def drops(self) -> dict[str, int]:
        """Dropped messages and refused connections, by cause, for the status."""
        floods = self.subscription_flood_resets
        counts = {"unread": self.dropped, "unknown_key": self.refused, "subscription_flood": floods}
        return {cause: count for cause, count in counts.items() if count}

    @property
    def refused(self) -> int:
        """Connections refused because their key is not on the list."""
        return self._guard.refused if self._guard is not None else 0

    def close(self) -> None:
        """Send what is queued (at most 200 ms) and unbind."""
        self.socket.close()

    def _guarded(self, config: BusConfig) -> Guard:
        try:
            return Guard(self.socket, config.keys)
        except KeysError as error:
            self.socket.close(0)
            if is_loopback(host_of(self.endpoint)):
                raise
            raise BusError(
                f"refusing to bind {self.endpoint}: without keys mien serves this machine only; {error}; "
                "or use bus.host = 127.0.0.1 and a tunnel, for instance ssh -L"
            ) from error

    def _rebind(self) -> None:
        """Close all connections; permitted ones reconnect at once."""
        self.socket.unbind(self.address)
        self._bind()

    def _bind(self) -> None:
        # A previous process may still be closing the port: restarting a session at once must not fail.
        give_up_s = time.monotonic() + _REBIND_S
        while True:
            try:
                self.socket.bind(self.endpoint)
                return
            except zmq.ZMQError as error:
                if error.errno == zmq.EADDRINUSE and time.monotonic() < give_up_s:
                    time.sleep(0.05)
                    continue
                self.socket.close(0)
                if error.errno == zmq.EADDRINUSE:
                    raise BusError(
                        f"{self.endpoint} is in use, probably by another mien; "
                        "stop it, or choose other ports with --port"
                    ) from error
                raise BusError(f"cannot bind {self.endpoint}: {error.strerror}") from error

    def _publish(self, name: bytes, frames: Message, *, keep: bool = True) -> None:
        if keep and (name in self._last or len(self._last) < self._max_topics):
            self._last[name] = frames
            self._due.discard(name)
        self._send(frames)

    def _send(self, frames: Message) -> None:
        give_up_s = time.monotonic() + _PATIENCE_S if self._lossless else 0.0  # without it, sending never blocks
        socket, copy = self.socket, isinstance(frames[0], bytes)
        while True:
            try:
                for frame in frames[:-1]:
                    _send_frame(socket, frame, _MORE, copy)
                _send_frame(socket, frames[-1], _NOW, copy)
                return
            except zmq.Again:
                if not self._lossless:
                    self.dropped += 1
                    return
                if time.monotonic() > give_up_s:
                    self._lengthen_queue()
                self.socket.poll(20, zmq.POLLIN)
                time.sleep(0.001)

    def _lengthen_queue(self) -> None:
        """One subscriber does not read: dropping a message now would take it from all of them."""
        queued = 2 * int(self.socket.getsockopt(zmq.SNDHWM))
        self._lossless = queued <= _MOST_QUEUED
        self.socket.setsockopt(zmq.SNDHWM, queued)
        self.socket.setsockopt(zmq.XPUB_NODROP, int(self._lossless))


class Receiver:
    """A SUB socket on one endpoint that stays connected: publishers may come and go.

    Args:
        high_water_mark: messages that wait at most.
        keys: folder of keys, empty for the user's; beyond this machine they are needed.

    Attributes:
        is_drained: whether no message was left when the last `drain` ended.

    Raises:
        BusError: not an endpoint. KeysError: keys are needed and not there.
    """

    def __init__(
        self, endpoint: str, prefixes: tuple[bytes, ...], high_water_mark: int = 64, keys: str | Path = ""
    ) -> None:
        self.endpoint, self.is_drained = endpoint, False
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, high_water_mark)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 5 << 20)
        self._looked_s = time.monotonic()
        self._connection = Connection(self.socket, endpoint, keys)
        for prefix in prefixes:
            self.socket.subscribe(prefix)

    def drain(self, limit: int = 256) -> Iterator[list[bytes]]:
        """The waiting messages, oldest first, at most `limit`, so that a flood cannot block the reader."""
        return self._read(limit, copy=True)

    def drain_frames(self, limit: int = 256) -> Iterator[list[zmq.Frame]]:
        """As `drain`, without copying the frames."""
        return self._read(limit, copy=False)

    def _read(self, limit: int, *, copy: bool) -> Iterator[list[Any]]:
        self.tend()
        self.is_drained = False
        receive = self.socket.recv
        for _ in range(limit):
            try:
                frame: Any = receive(_NOW, False)
            except zmq.Again:
                break
            frames = [frame.bytes if copy else frame]
            while frame.more:  # asking the socket takes longer than making a `Frame`, which knows
                frame = receive(_NOW, False)
                frames.append(frame.bytes if copy else frame)
            yield frames
            if not has_message(self.socket):  # costs a third of what the exception does
                break
        else:
            return
        self.is_drained = True

    def tend(self) -> None:
        """Maintain the connection when due. Called by `drain`; call it too while nothing arrives."""
        if time.monotonic() - self._looked_s >= _LOOK_INTERVAL_S:
            self._looked_s = time.monotonic()
            self._connection.mend()

    def close(self) -> None:
        """Disconnect. Closing twice does nothing."""
        self._connection.close()

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, and what to do, as far as is known."""
        return self._connection.trouble
