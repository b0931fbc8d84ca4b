"""What libzmq tells about a connection: whether it exists, was given up, or why there is none."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import weakref
from pathlib import Path

import zmq

from mien.errors import BusError, KeysError
from mien.stream.bus.curve import Link, host_of, is_guarded

_MONITORS = itertools.count()
_GIVEN_UP_S = 1.0
_FAILED = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
_BROKEN = zmq.Event.DISCONNECTED | _FAILED
_TRYING = zmq.Event.CONNECT_DELAYED | zmq.Event.CONNECT_RETRIED | zmq.Event.CONNECTED
_OTHERS = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.CLOSED


class Connection:
    """Connects a socket to one endpoint, and follows it. `close` closes the socket too; twice does nothing.

    Args:
        socket: not connected yet; closed on an error.
        keys: folder of keys, empty for the user's; required for other machines.

    Raises:
        BusError: not an endpoint. KeysError: keys are required but missing.
    """

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, keys: str | Path) -> None:
        self._socket, self._endpoint = socket, endpoint
        self._is_cut = False  # its key was revoked
        self._broken_s: float | None = None
        self._event, self._failure = 0, 0
        self._events: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.setsockopt(zmq.RCVHWM, 0)  # a full queue would block libzmq, with all its connections
        # A counter, not `id()`, which is reused while libzmq is still closing the old socket.
        monitored = f"inproc://connection-{next(_MONITORS)}"
        socket.monitor(monitored, _BROKEN | _TRYING | _OTHERS)
        self._events.connect(monitored)
        # Closes a socket that nobody closed, in the only safe order.
        self.close = weakref.finalize(self, _close_monitored, socket, self._events)
        try:
            socket.setsockopt(zmq.IPV6, int(":" in host_of(endpoint)))
            port = endpoint.rpartition(":")[2]
            if endpoint.startswith("tcp:") and not (port.isdigit() and 0 < int(port) < 65536):
                raise zmq.ZMQError(zmq.EINVAL)
            self._link = Link(socket, endpoint, keys) if is_guarded(endpoint, keys) else None
            socket.connect(endpoint)
        except KeysError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise BusError(f"not an endpoint: {endpoint!r}; it should look like tcp://127.0.0.1:5560") from error

    def mend(self) -> None:
        """Disconnect from a machine whose key was revoked, use keys that were replaced, and connect again."""
        self.look()
        if self._link is not None:
            if not self._is_cut and self._link.is_revoked():
                self._is_cut = True
                self._disconnect()
            if (self._is_cut or self.trouble is not None) and self._link.renew(self._socket):
                self._is_cut = False
                self._reconnect()
        if self._has_given_up() and not self._is_cut:
            self._reconnect()

    def look(self) -> None:
        """Take in what has happened."""
        while self._events.poll(0):
            event = int.from_bytes(self._events.recv_multipart()[0][:2], sys.byteorder)
            self._broken_s = time.monotonic() if event & _BROKEN else None
            if event & _FAILED:
                self._failure = event
            elif event == self._event == zmq.Event.CONNECT_RETRIED:
                self._failure = event  # without an attempt in between: there is no address to connect to
            elif event & (zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.CLOSED):
                self._failure = 0
            self._event = event

    def _has_given_up(self) -> bool:
        """Whether libzmq will not connect again by itself; true once.

        It does when a connection breaks, but never when the other side broke the protocol: one message that is too
        long, or another program on the port for a moment, and nothing would be received from then on.
        """
        if self._broken_s is None or time.monotonic() - self._broken_s < _GIVEN_UP_S:
            return False
        self._broken_s = None
        return True

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, and what to do; None if there is one, or nobody answers."""
        endpoint, link = self._endpoint, self._link
        if self._failure == zmq.Event.CONNECT_RETRIED:
            return f"{host_of(endpoint)} has no known address; correct {endpoint}"
        if self._failure == zmq.Event.HANDSHAKE_FAILED_AUTH and link is not None:
            return f"{endpoint} refuses the key of this machine; on that machine run: mien keys add NAME {link.own_key}"
        if self._failure == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            if link is None:
                return f"{endpoint} requires keys; name their folder with --keys or bus.keys, see mien keys"
            return f"{endpoint} uses no keys, but here they are required; see --keys, bus.keys"
        if self._failure and link is not None:
            return f"{endpoint} does not have the key that is known here; compare `mien keys list` on both machines"
        if self._failure:
            return f"what answers at {endpoint} is no mien, or hangs"
        return None

    def _reconnect(self) -> None:
        self._disconnect()
        self._socket.connect(self._endpoint)

    def _disconnect(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # the connection may be gone altogether
            self._socket.disconnect(self._endpoint)


def _close_monitored(socket: zmq.Socket[bytes], events: zmq.Socket[bytes]) -> None:
    """Close a socket and its monitor: unread events would block libzmq, with all its connections."""
    with contextlib.suppress(zmq.ZMQError):  # it may be closed already
        socket.disable_monitor()
    events.close(0)
    socket.close(0)
