"""The actors of a fleet as Ray has them: what exists, and what each was made with, for a directory that starts anew."""

from __future__ import annotations

import os
from typing import Any

from mien.stream.bus.curve import host_of
from mien.stream.fleet.capture import CaptureHost
from mien.stream.fleet.gateway import Gateway
from mien.stream.fleet.pool import PoolHost


class _Described:
    """An actor that knows what it was made with."""

    def __init__(self, about: bytes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._about = about

    def describe(self) -> bytes:
        """Its `About`."""
        return self._about

    def processes(self) -> list[int]:
        """Of this actor."""
        return [os.getpid()]


class CaptureActor(_Described, CaptureHost):
    """A capture host, on the node that it was placed on."""


class PoolActor(_Described, PoolHost):
    """A pool, on the node that it was placed on."""

    def processes(self) -> list[int]:
        """Of this actor, and of inference."""
        return [os.getpid(), self.process()]


class GatewayActor(Gateway):
    """The gateway, at an address of the node that it was placed on."""

    @property
    def address(self) -> str:
        """Where it serves; of all addresses of a node, that by which Ray knows it."""
        import ray

        served = super().address
        host, port = host_of(served), served.rpartition(":")[2]
        return f"tcp://{ray.util.get_node_ip_address()}:{port}" if host in ("0.0.0.0", "::", "*") else served

    def processes(self) -> list[int]:
        """Of this actor."""
        return [os.getpid()]
