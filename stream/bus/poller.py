"""Waiting for messages on hundreds of sockets, at a cost that depends on those that have one."""

from __future__ import annotations

import selectors
import sys
import time
from collections.abc import Sequence

import zmq

_SWEEP_S = 0.1
_FEW = 32  # sessions whose sockets fit into every system's limits
_FILES_A_SESSION = 24  # of three workers' connections, with a monitor each
# Plain numbers: to combine pyzmq's enumerations takes longer than to ask the socket.
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


def make_room(sessions: int) -> None:
    """Let this process have the sockets of so many sessions, where the system and libzmq allow fewer by default.

    To be called before the first socket is made.
    """
    if sessions <= _FEW:
        return
    zmq.Context.instance().set(zmq.MAX_SOCKETS, 65_000)
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = sessions * _FILES_A_SESSION
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Poller:
    """Which sockets have a message waiting.

    `zmq.Poller` asks every socket at every call: 0.6 ms for 768 silent ones, more than everything else costs that an
    inference process does with a message. libzmq has a file descriptor for each socket, which the system can watch. It
    signals changes only, and whatever is done with a socket may take the signal away (zmq_getsockopt(3), ZMQ_FD). So
    sockets that had a message are looked at again until they have none, and all of them ten times a second.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: set[zmq.Socket[bytes]] = set()
        self._doubted: dict[zmq.Socket[bytes], None] = {}  # that may have a message without a signal, in their order
        self._swept_s = time.monotonic()

    def register(self, socket: zmq.Socket[bytes]) -> None:
        """Watch a socket."""
        self._selector.register(socket.FD, selectors.EVENT_READ, socket)
        self._sockets.add(socket)
        self._doubted[socket] = None

    def unregister(self, socket: zmq.Socket[bytes]) -> None:
        """Watch a socket no longer; to be called before it is closed."""
        self._selector.unregister(socket.FD)
        self._sockets.discard(socket)
        self._doubted.pop(socket, None)

    def doubt(self, socket: zmq.Socket[bytes]) -> None:
        """Look at a socket at the next call, since something else than waiting was done with it."""
        self._doubted[socket] = None

    def trust(self, socket: zmq.Socket[bytes]) -> None:
        """Wait for a socket's signal again: it was read until it said that it has no message."""
        self._doubted.pop(socket, None)

    def put_off(self, sockets: Sequence[zmq.Socket[bytes]]) -> None:
        """Sockets that were not read although they have a message: they come first at the next call."""
        self._doubted = dict.fromkeys(sockets) | self._doubted

    def poll(self, timeout_ms: float) -> list[zmq.Socket[bytes]]:
        """The sockets that have a message; it may be none before the time is over."""
        now_s = time.monotonic()
        if now_s - self._swept_s >= _SWEEP_S:
            self._swept_s = now_s
            self._doubted |= dict.fromkeys(self._sockets)
        ready = [socket for socket in self._doubted if has_message(socket)]
        self._doubted = dict.fromkeys(ready)
        for key, _ in self._selector.select(0 if ready else timeout_ms / 1000):
            # Looking also takes in what libzmq has to do for the socket; without it the signal would stay.
            if has_message(key.data) and key.data not in self._doubted:
                ready.append(key.data)
                self._doubted[key.data] = None
        return ready

    def close(self) -> None:
        """Give the system's resources back."""
        self._selector.close()


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Whether a socket has a message waiting."""
    return bool(int(socket.getsockopt(_EVENTS)) & _READABLE)
