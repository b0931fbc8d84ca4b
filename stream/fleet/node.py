"""Shared by a fleet's actors: how they receive orders, and each machine's state folder and keys."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import platformdirs

from mien.errors import KeysError
from mien.files import write_file
from mien.stream.bus.keyring import Keyring, parse_public, to_hex
from mien.stream.fleet.orders import CaptureTask, GatewayOrder, MemberOrder, Trusted
from mien.stream.processes.control import Assignment

OrderT = TypeVar("OrderT", MemberOrder[CaptureTask], MemberOrder[Assignment], GatewayOrder)


def state_folder(fleet: str) -> Path:
    """A fleet's state folder on this machine; readable by the user only."""
    folder = platformdirs.user_state_path("mien", appauthor=False) / "fleet" / fleet
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class NodeKeys:
    """This machine's key pair in a fleet, created on first use, and the peers that may connect.

    Args:
        fleet: its name.
        door: for a socket open to others than the fleet's machines, with its own allow-list.

    Attributes:
        folder: of the keys, as for `bus.keys`. public: this machine's public key, in hex.
    """

    def __init__(self, fleet: str, door: str = "") -> None:
        keyring = Keyring(state_folder(fleet) / "keys")
        with suppress(KeysError):  # another actor on this machine was first
            keyring.create()
        if door:
            own = Keyring(state_folder(fleet) / f"keys-{door}")
            own.folder.mkdir(mode=0o700, exist_ok=True)
            write_file(own.identity_path, keyring.identity_path.read_bytes(), private=True)
            keyring = own
        self.folder = str(keyring.folder)
        self.public = to_hex(keyring.identity().public)
        self._keyring = keyring

    def trust(self, trusted: Mapping[str, Trusted]) -> None:
        """Allow exactly these to connect from now on, besides this machine itself."""
        known = self._keyring.peers()
        others = {name: peer for name, peer in trusted.items() if peer.key != self.public}
        for name in known.keys() - others.keys():
            with suppress(KeysError):
                self._keyring.revoke(name)
        for name, peer in others.items():
            before = known.get(name)
            if before is not None and (to_hex(before.public), before.host) == (peer.key, peer.host):
                continue
            with suppress(KeysError):
                if before is not None and before.public != parse_public(peer.key):
                    self._keyring.revoke(name)
                self._keyring.add(name, peer.key, peer.host)


class Ordered(ABC, Generic[OrderT]):
    """An actor controlled by the directory.

    Args:
        keys: of the machine. kind: of its orders. about: its creation arguments, for a restarted directory.
    """

    def __init__(self, keys: NodeKeys, kind: type[OrderT], about: bytes = b"") -> None:
        self._keys, self._about = keys, about
        self._kind: type[OrderT] = kind
        self._version = -1  # of the last order with changes
        self._lock = threading.Lock()

    def describe(self) -> bytes:
        """Its creation arguments."""
        return self._about

    def processes(self) -> list[int]:
        """Ids of its own and its child processes."""
        return [os.getpid()]

    def sync(self, order: bytes) -> bytes:
        """Accept an order, and return a report. Lengthy work is done in the background."""
        decoded = msgspec.json.decode(order, type=self._kind)
        with self._lock:
            if decoded.trusted is not None:
                self._keys.trust(decoded.trusted)
            return msgspec.json.encode(self._apply(decoded))

    @abstractmethod
    def _apply(self, order: OrderT) -> msgspec.Struct:
        """Carry out an order, with the lock held; returns the report."""
