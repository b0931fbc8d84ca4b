"""Keys of this machine and of the machines that it knows: files readable by their owner only.

A folder holds `identity.json`, this machine's key pair (CURVE25519), and `peers/NAME.json`, the public key of each
machine that may connect to it, with a host if we connect to that machine. Public keys are shown and typed as 64 hex
digits, since ZeroMQ's own form (Z85) is full of shell metacharacters. A secret key goes from its file to the socket,
and never into a message, log or error.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import platformdirs
import zmq
from zmq.utils import z85

from mien.errors import KeysError
from mien.files import reason, write_file

_HEX = re.compile(r"[0-9a-f]{64}")
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LARGEST_BYTES = 4096
_FRESH_S = 0.25


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This machine's key pair, in Z85. `repr` hides the secret."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Identity({to_hex(self.public)})"


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another machine: its public key in Z85, and its host if we connect to it."""

    public: str
    host: str = ""


def default_folder() -> Path:
    """The user's key folder."""
    return platformdirs.user_config_path("mien", appauthor=False) / "keys"


def keys_folder(folder: str | Path = "") -> Path:
    """The folder for a setting; empty means the user's."""
    return Path(folder).expanduser() if str(folder) else default_folder()


def to_hex(public: str) -> str:
    """A Z85 key as 64 hex digits."""
    return z85.decode(public).hex()


def parse_public(text: str) -> str:
    """A public key, typed as 64 hex digits or in Z85, in Z85.

    Raises:
        KeysError: it is neither.
    """
    text = text.strip()
    if _HEX.fullmatch(text.lower()):
        return z85.encode(bytes.fromhex(text)).decode()
    if _Z85.fullmatch(text):
        with suppress(ValueError, struct.error):  # digits that stand for more than 32 bits
            if len(z85.decode(text)) == 32:
                return text
    raise KeysError("not a public key: it has 64 hex digits, as `mien keys list` shows them on the other machine")


class Keyring:
    """The keys in a folder. Files are re-read while it is in use: additions and revocations take effect at once."""

    def __init__(self, folder: str | Path = "") -> None:
        self.folder = keys_folder(folder)
        self._lock = threading.Lock()
        self._looked_s = float("-inf")
        self._peers: dict[str, Peer] = {}
        self._allowed: frozenset[str] = frozenset()

    @property
    def identity_path(self) -> Path:
        return self.folder / "identity.json"

    def identity_stamp(self) -> tuple[int, int] | None:
        """Changes when the file with the secret key is replaced; None without one."""
        try:
            found = self.identity_path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def identity(self) -> Identity:
        """This machine's key pair.

        Raises:
            KeysError: there is none, others can read it, or the file is damaged.
        """
        path = self.identity_path
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(_LARGEST_BYTES + 1)
        except FileNotFoundError:
            raise KeysError(f"no keys in {self.folder}; make them with: mien keys new{self._option()}") from None
        except OSError as error:
            raise KeysError(f"cannot read {path}: {error.strerror}") from None
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise KeysError(f"others can read {path}; run: chmod 600 '{path}'")
        # The content, and the cause that may quote it, stay out of the message: it may be the secret.
        try:
            identity = msgspec.json.decode(content, type=Identity)
            is_pair = zmq.curve_public(identity.secret.encode()).decode() == identity.public
        except (msgspec.MsgspecError, UnicodeError, ValueError, zmq.ZMQError):
            is_pair = False
        if not is_pair:
            raise KeysError(
                f"{path} is damaged; put back a copy, or make new keys: mien keys new --force{self._option()}"
            )
        return identity

    def create(self, *, force: bool = False) -> Identity:
        """Generate and store a key pair.

        Raises:
            KeysError: one exists already, or the folder is not writable.
        """
        if self.identity_path.exists() and not force:
            raise KeysError(
                f"{self.identity_path} exists already; --force replaces it, and machines that know it will "
                "refuse this one until they are told the new key"
            )
        public, secret = zmq.curve_keypair()
        identity = Identity(public.decode(), secret.decode())
        self._write(self.identity_path, msgspec.json.encode(identity))
        return identity

    def peers(self) -> dict[str, Peer]:
        """The machines that may connect, by name; re-read at most every quarter of a second."""
        self._refresh()
        return self._peers

    def is_allowed(self, public: str) -> bool:
        """Whether a machine with this public key (Z85) may connect."""
        self._refresh()
        return public in self._allowed

    def allowed(self) -> frozenset[str]:
        self._refresh()
        return self._allowed

    def add(self, name: str, public: str, host: str = "") -> Peer:
        """Allow a machine to connect, and record its host if we connect to it.

        Raises:
            KeysError: the name or key is invalid, or the name is taken by another key.
        """
        path = self._peer_path(name)
        peer = Peer(parse_public(public), host.strip())
        if len(peer.host) > 253 or any(character.isspace() or ord(character) < 32 for character in peer.host):
            raise KeysError("not a host: give a name or an address, without port, for instance --host 192.168.1.20")
        known = self._read(path) if path.exists() else None
        if known is not None and known.public != peer.public:
            raise KeysError(f"{name} is known with another key; first: mien keys revoke {name}{self._option()}")
        self._write(path, msgspec.json.encode(peer))
        self._looked_s = float("-inf")
        return peer

    def revoke(self, name: str) -> None:
        """Revoke a machine's key. Running processes disconnect it within a second.

        Raises:
            KeysError: no machine has this name.
        """
        try:
            self._peer_path(name).unlink()
        except FileNotFoundError:
            known = ", ".join(sorted(self.peers())) or "none"
            raise KeysError(f"no machine is called {name}; known: {known}") from None
        except OSError as error:
            raise KeysError(f"cannot remove {name} from {self.folder}: {error.strerror}") from None
        self._looked_s = float("-inf")

    def key_of(self, host: str) -> str | None:
        """The public key (Z85) of the machine with this host, if known."""
        return next((peer.public for peer in self.peers().values() if peer.host == host), None)

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked_s < _FRESH_S:
                return
            peers = {}
            # An unreadable file admits no machine; `mien keys list` names it.
            with suppress(OSError):
                for path in sorted((self.folder / "peers").glob("*.json")):
                    peer = self._read(path)
                    if peer is not None:
                        peers[path.stem] = peer
            self._peers, self._allowed = peers, frozenset(peer.public for peer in peers.values())
            self._looked_s = time.monotonic()

    def unreadable(self) -> list[Path]:
        """Peer files that cannot be read, and so admit no machine."""
        return [path for path in sorted((self.folder / "peers").glob("*.json")) if self._read(path) is None]

    @staticmethod
    def _read(path: Path) -> Peer | None:
        try:
            with path.open("rb") as file:
                peer = msgspec.json.decode(file.read(_LARGEST_BYTES), type=Peer)
            return Peer(parse_public(peer.public), peer.host)
        except (OSError, UnicodeError, msgspec.MsgspecError, KeysError):
            return None

    def _peer_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise KeysError(f"not a name for a machine: {name!r}; use letters, digits, dot, dash and underscore")
        return self.folder / "peers" / f"{name}.json"

    def _write(self, path: Path, content: bytes) -> None:
        """Atomic, and never readable by others, not even for a moment."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeysError(f"cannot make {path.parent}: {reason(error)}; choose another place with --folder") from None
        write_file(path, content, private=True, error=KeysError)

    def _option(self) -> str:
        return "" if self.folder == default_folder() else f" --folder '{self.folder}'"
