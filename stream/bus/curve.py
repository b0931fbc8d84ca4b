"""Sockets restricted to known machines: CURVE encryption and authentication, with an allow-list (ZAP).

libzmq asks one handler per process about each connection, over an inproc socket; without a handler it accepts all,
so sockets require one (`ZMQ_ZAP_ENFORCE_DOMAIN`). It answers from a `Keyring`, which follows its files.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from pathlib import Path

import zmq
from zmq.utils import z85

from mien.errors import BusError, KeysError
from mien.stream.bus.keyring import Identity, Keyring, keys_folder, to_hex

_LOG = logging.getLogger(__name__)
_LOG_INTERVAL_S = 10.0
_HANDSHAKE_MS = 5000  # CURVE handshake timeout
_HEARTBEAT_MS = 2000
_SILENCE_MS = 6000  # heartbeat timeout: a lost peer is noticed, and reconnected


def is_loopback(host: str) -> bool:
    """Whether an address is on loopback."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        # IPv4-mapped, as a dual-stack socket reports an IPv4 peer.
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback
    except ValueError:
        return False


def host_of(endpoint: str) -> str:
    """The host of an endpoint such as tcp://127.0.0.1:5560; empty for other transports."""
    scheme, _, rest = endpoint.partition("://")
    return rest.rpartition(":")[0].strip("[]") if scheme == "tcp" else ""


def is_guarded(endpoint: str, keys: str | Path) -> bool:
    """Whether an endpoint requires keys: always on other machines, and on this one if a key folder is named."""
    if str(keys):
        return True
    host = host_of(endpoint)
    return bool(host) and not is_loopback(host)


class Guard:
    """Access control of a socket that we bind.

    Args:
        bound: the socket, not bound yet; it becomes a CURVE server.
        keys: folder of keys, empty for the user's.

    Raises:
        KeysError: this machine has no key pair.
    """

    def __init__(self, bound: zmq.Socket[bytes], keys: str | Path) -> None:
        self._authenticator = _authenticator(bound.context)
        self._domain = str(keys_folder(keys).absolute()).encode()
        self._keyring = self._authenticator.keyring(self._domain, keys)
        identity = self._keyring.identity()
        self._authenticator.own[self._domain] = identity.public
        bound.setsockopt(zmq.CURVE_SERVER, 1)
        bound.setsockopt(zmq.CURVE_SECRETKEY, identity.secret.encode())
        bound.setsockopt(zmq.ZAP_DOMAIN, self._domain)
        bound.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        bound.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        _beat(bound)
        self._allowed = self._keyring.allowed()
        self._bound, self._identity, self._stamp = bound, identity, self._keyring.identity_stamp()

    @property
    def refused(self) -> int:
        """Connections from unknown machines rejected since the start."""
        return self._authenticator.refused.get(self._domain, 0)

    def has_changed(self) -> bool:
        """Whether a key was removed from the list, or this machine's replaced, since the last call: then bind again."""
        before, self._allowed = self._allowed, self._keyring.allowed()
        return self._has_replaced() or bool(before - self._allowed)

    def _has_replaced(self) -> bool:
        stamp, self._stamp = self._stamp, self._keyring.identity_stamp()
        if self._stamp in (stamp, None):
            return False
        try:
            identity = self._keyring.identity()
        except KeysError as error:
            _LOG.warning("still using the previous key: %s", error)
            return False
        before, self._identity = self._identity, identity
        self._authenticator.own[self._domain] = identity.public
        self._bound.setsockopt(zmq.CURVE_SECRETKEY, identity.secret.encode())
        return identity != before


class Link:
    """The client side of a connection to a guarded socket.

    Args:
        connecting: the socket, not connected yet.
        keys: folder of keys, empty for the user's.

    Raises:
        KeysError: this machine has no key pair, or the machine at `endpoint` is not known.
    """

    def __init__(self, connecting: zmq.Socket[bytes], endpoint: str, keys: str | Path) -> None:
        self._keyring = Keyring(keys)
        self._host = host_of(endpoint)
        self._is_own = self._keyring.key_of(self._host) is None and _is_here(self._host)
        self._server, self._identity = self._known()
        self._set(connecting)
        _beat(connecting)

    @property
    def own_key(self) -> str:
        """The public key of this machine, as 64 hex digits."""
        return to_hex(self._identity.public)

    def is_revoked(self) -> bool:
        """Whether the key of the machine at the other end was revoked."""
        return not self._is_own and self._keyring.key_of(self._host) != self._server

    def renew(self, disconnected: zmq.Socket[bytes]) -> bool:
        """Use keys that have replaced those in use, from the next connection on. Returns whether any have."""
        try:
            server, identity = self._known()
        except KeysError:
            return False
        if (server, identity) == (self._server, self._identity):
            return False
        self._server, self._identity = server, identity
        self._set(disconnected)
        return True

    def _known(self) -> tuple[str, Identity]:
        """The keys of the other machine and of this one, as they are now."""
        identity = self._keyring.identity()
        server = identity.public if self._is_own else self._keyring.key_of(self._host)
        if server is None:
            raise KeysError(
                f"the key of {self._host} is not known here; on that machine run: mien keys list; "
                f"on this one: mien keys add NAME KEY --host {self._host}"
            )
        return server, identity

    def _set(self, connecting: zmq.Socket[bytes]) -> None:
        connecting.setsockopt(zmq.CURVE_SERVERKEY, self._server.encode())
        connecting.setsockopt(zmq.CURVE_PUBLICKEY, self._identity.public.encode())
        connecting.setsockopt(zmq.CURVE_SECRETKEY, self._identity.secret.encode())


def _beat(guarded: zmq.Socket[bytes]) -> None:
    guarded.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    guarded.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)


def _is_here(host: str) -> bool:
    """Whether an address is local: only those can be bound. No DNS lookup."""
    if is_loopback(host):
        return True
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


class _Authenticator:
    """libzmq's ZAP handler (ZeroMQ RFC 27), in its own thread: decides who may connect. One per context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.own: dict[bytes, str] = {}  # this machine's own processes connect with its own key
        self.refused: dict[bytes, int] = {}
        self._keyrings: dict[bytes, Keyring] = {}
        self._logged_s = float("-inf")
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind("inproc://zeromq.zap.01")
        except zmq.ZMQError as error:
            self._socket.close(0)
            raise BusError(f"another ZAP handler runs in this process: {error.strerror}") from error
        threading.Thread(target=self._serve, name="zap", daemon=True).start()

    def keyring(self, domain: bytes, keys: str | Path) -> Keyring:
        """The keyring of a folder, shared by all sockets guarded by it."""
        return self._keyrings.setdefault(domain, Keyring(keys))

    def _serve(self) -> None:
        while True:
            try:
                version, request, domain, address, _routing, mechanism, *credentials = self._socket.recv_multipart()
                allowed = mechanism == b"CURVE" and self._admits(domain, credentials)
                if not allowed:
                    self._note(domain, address)
                status = [b"200", b"OK"] if allowed else [b"400", b"not on the list"]
                self._socket.send_multipart([version, request, *status, b"", b""])
            except zmq.ZMQError:
                return  # the context was terminated, and every socket with it
            except ValueError:
                self._socket.send_multipart([b"1.0", b"", b"500", b"malformed", b"", b""])

    def _admits(self, domain: bytes, credentials: list[bytes]) -> bool:
        keyring = self._keyrings.get(domain)
        if keyring is None or len(credentials) != 1 or len(credentials[0]) != 32:
            return False
        public = z85.encode(credentials[0]).decode()
        return public == self.own.get(domain) or keyring.is_allowed(public)

    def _note(self, domain: bytes, address: bytes) -> None:
        self.refused[domain] = self.refused.get(domain, 0) + 1
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_INTERVAL_S:
            self._logged_s = now_s
            shown = address.decode("ascii", "replace")
            _LOG.warning("refused %s: its key is not on the list; %d so far", shown, self.refused[domain])


_authenticators: dict[int, _Authenticator] = {}
_authenticators_lock = threading.Lock()


def _authenticator(context: zmq.Context[zmq.Socket[bytes]]) -> _Authenticator:
    with _authenticators_lock:
        if context.underlying not in _authenticators:
            _authenticators[context.underlying] = _Authenticator(context)
        return _authenticators[context.underlying]
