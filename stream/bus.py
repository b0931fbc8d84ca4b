"""Sockets of the bus: a publisher that remembers the last message of each topic, and a receiver that drains.

What libzmq does, and why this is built as it is: `ZMQ_CONFLATE` does not work with messages of several frames, so
draining to the newest is done by the reader; a full queue keeps the OLD messages, so queues are short; a new SUB misses
what was sent before its subscription arrived, so the publisher (XPUB sees subscriptions) sends the last values again.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator

import zmq

from mien.config import BusConfig
from mien.errors import BusError

_RESEND_INTERVAL_S = 0.02  # a storm of subscriptions costs at most 50 resends a second
_MAX_TOPICS = 256
_PATIENCE_S = 5.0
_REBIND_S = 1.5


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Publisher:
    """An XPUB socket with the last value of every topic.

    Args:
        endpoint: where to bind.
        config: high-water mark.
        lossless: wait for slow subscribers instead of dropping (playing a clip as fast as possible). A subscriber
            that has not read for five seconds is given up on, and drops from then on.

    Raises:
        BusError: the port is in use, or the address is not on loopback.
    """

    def __init__(self, endpoint: str, config: BusConfig, *, lossless: bool = False) -> None:
        if not is_loopback(config.host):
            raise BusError(
                f"refusing to bind {endpoint}: without keys mien serves this machine only; "
                "use bus.host = 127.0.0.1 and a tunnel, for instance ssh -L"
            )
        self.endpoint = endpoint
        self.subscriptions: dict[bytes, int] = {}
        self.dropped = 0
        self._last: dict[bytes, list[bytes]] = {}
        self._due: set[bytes] = set()
        self._resent_s = 0.0
        self._lossless = lossless
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.SNDHWM, config.high_water_mark)
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 4096)  # subscribers have nothing long to say
        if lossless:
            self.socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._bind(endpoint)

    def send(self, frames: list[bytes], *, keep: bool = True) -> None:
        """Publish a message, and keep it as the last value of its topic."""
        self.service()
        if keep and (frames[0] in self._last or len(self._last) < _MAX_TOPICS):
            self._last[frames[0]] = frames
            self._due.discard(frames[0])
        self._send(frames)

    def service(self) -> None:
        """Answer new subscriptions with last values. Called by `send`; call it too while nothing is sent."""
        while True:
            try:
                event = self.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            if not event or event[0] not in (0, 1):
                continue
            prefix = event[1:]
            if event[0] == 1:
                self.subscriptions[prefix] = self.subscriptions.get(prefix, 0) + 1
                self._due.update(topic for topic in self._last if topic.startswith(prefix))
            elif prefix in self.subscriptions:
                self.subscriptions[prefix] -= 1
                if self.subscriptions[prefix] <= 0:
                    del self.subscriptions[prefix]
        now_s = time.monotonic()
        if self._due and now_s - self._resent_s >= _RESEND_INTERVAL_S:
            self._resent_s = now_s
            due, self._due = self._due, set()
            for topic in due:
                self._send(self._last[topic])

    def has_subscriber(self, topic: bytes) -> bool:
        """Whether somebody listens to a topic now."""
        self.service()
        return any(topic.startswith(prefix) for prefix in self.subscriptions)

    def close(self) -> None:
        """Send what is queued (at most 200 ms) and unbind."""
        self.socket.close()

    def _bind(self, endpoint: str) -> None:
        # Whoever had the port may just be leaving: a session that is started again at once must not fail for that.
        give_up_s = time.monotonic() + _REBIND_S
        while True:
            try:
                self.socket.bind(endpoint)
                return
            except zmq.ZMQError as error:
                if error.errno == zmq.EADDRINUSE and time.monotonic() < give_up_s:
                    time.sleep(0.05)
                    continue
                self.socket.close(0)
                if error.errno == zmq.EADDRINUSE:
                    raise BusError(
                        f"{endpoint} is in use, probably by another mien; stop it, or choose other ports with --port"
                    ) from error
                raise BusError(f"cannot bind {endpoint}: {error.strerror}") from error

    def _send(self, frames: list[bytes]) -> None:
        if not self._lossless:
            self.socket.send_multipart(frames, zmq.DONTWAIT, copy=True)
            return
        give_up_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.socket.send_multipart(frames, zmq.DONTWAIT, copy=True)
                return
            except zmq.Again:
                if time.monotonic() > give_up_s:
                    self.dropped += 1
                    return
                self.socket.poll(20, zmq.POLLIN)
                time.sleep(0.001)


class Receiver:
    """A SUB socket on one endpoint. It connects at once and for good: publishers may come and go."""

    def __init__(self, endpoint: str, prefixes: tuple[bytes, ...], high_water_mark: int = 64) -> None:
        self.endpoint = endpoint
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, high_water_mark)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 5 << 20)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.socket.close(0)
            raise BusError(f"not an endpoint: {endpoint!r}; it should look like tcp://127.0.0.1:5560") from error
        for prefix in prefixes:
            self.socket.subscribe(prefix)

    def drain(self, limit: int = 256) -> Iterator[list[bytes]]:
        """The messages that are there now, oldest first, at most `limit`: a flood cannot hold the reader."""
        for _ in range(limit):
            try:
                yield self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return

    def close(self) -> None:
        """Disconnect."""
        self.socket.close(0)
