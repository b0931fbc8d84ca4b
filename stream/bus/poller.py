"""Polls hundreds of sockets at a cost that depends only on those with messages."""

from __future__ import annotations

import selectors
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.backend

_SWEEP_S = 0.5
_FEW = 32  # sessions whose sockets fit into every system's limits
_FILES_A_SESSION = 24  # of three workers' connections, with a monitor each
# Plain ints: combining pyzmq's enums takes longer than the call.
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
_poll: Callable[..., list[tuple[Any, int]]] = zmq.backend.zmq_poll


def make_room(sessions: int) -> None:
    """Raise the limits of libzmq and the system on sockets, if so many sessions need it.

    Call it before creating the first socket.
    """
    if sessions <= _FEW:
        return
    zmq.Context.instance().set(zmq.MAX_SOCKETS, 65_000)
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        required = sessions * _FILES_A_SESSION
        if soft != resource.RLIM_INFINITY and soft < required:
            most = required if hard == resource.RLIM_INFINITY else min(required, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Poller:
    """Finds the sockets that have a message waiting.

    `zmq.Poller` asks every socket on every call: 0.6 ms for 768 silent ones, more than all other work on a message
    costs. libzmq has a file descriptor for each socket, which the system can watch. It is edge-triggered, and any
    operation on the socket may consume the edge (zmq_getsockopt(3), ZMQ_FD). So sockets that had a message are checked
    again until they have none, and all sockets twice a second.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: set[zmq.Socket[bytes]] = set()
        self._doubted: dict[zmq.Socket[bytes], None] = {}  # may have a message without an edge, in order
        self._put_off: dict[zmq.Socket[bytes], None] = {}
        self._swept_s = time.monotonic()

    def register(self, socket: zmq.Socket[bytes]) -> None:
        self._selector.register(socket.FD, selectors.EVENT_READ, socket)
        self._sockets.add(socket)
        self._doubted[socket] = None

    def unregister(self, socket: zmq.Socket[bytes]) -> None:
        """Stop watching a socket; call it before closing the socket."""
        self._selector.unregister(socket.FD)
        self._sockets.discard(socket)
        self._doubted.pop(socket, None)
        self._put_off.pop(socket, None)

    def doubt(self, socket: zmq.Socket[bytes]) -> None:
        """Check a socket on the next call: another operation may have consumed its edge."""
        self._doubted[socket] = None

    def trust(self, socket: zmq.Socket[bytes]) -> None:
        """Wait for a socket's next edge: it was read until it was empty."""
        self._doubted.pop(socket, None)

    def put_off(self, sockets: Sequence[zmq.Socket[bytes]]) -> None:
        """Put sockets that have a message but were not read first on the next call, without asking them again."""
        self._put_off = dict.fromkeys(sockets)

    def poll(self, timeout_ms: float) -> list[zmq.Socket[bytes]]:
        """The sockets that have a message, and those with a new edge, which may have none.

        May return none before the timeout.
        """
        now_s = time.monotonic()
        if now_s - self._swept_s >= _SWEEP_S:
            self._swept_s = now_s
            self._doubted |= dict.fromkeys(self._sockets)
        # One call for all: it costs less than half as much a socket as `has_message`.
        asked = [(each, _READABLE) for each in self._doubted if each not in self._put_off]
        ready = [*self._put_off, *(found for found, _ in _poll(asked, 0))]
        self._put_off = {}
        self._doubted = dict.fromkeys(ready)
        for key, _ in self._selector.select(0 if ready else timeout_ms / 1000):
            # Nearly always a message; asking would cost as much as reading one. Reading or asking clears the edge.
            if key.data not in self._doubted:
                ready.append(key.data)
                self._doubted[key.data] = None
        return ready

    def close(self) -> None:
        self._selector.close()


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Whether a socket has a message waiting."""
    return bool(int(socket.getsockopt(_EVENTS)) & _READABLE)
