"""Free TCP ports of this machine, as far as that can be known before binding them."""

from __future__ import annotations

import socket

from mien.errors import BusError

_COUNT = 4
_TRIES = 200
_HIGHEST = 65_530


def free_port() -> int:
    """A loopback port that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(host: str = "127.0.0.1", first: int = 0) -> int:
    """The first of four consecutive free ports, searching from `first`; 0: from a port proposed by the system.

    Raises:
        BusError: there are none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    first = first or min(free_port(), _HIGHEST - _TRIES * _COUNT)
    for candidate in range(first, min(first + _TRIES * _COUNT, _HIGHEST), _COUNT):
        try:
            for port in range(candidate, candidate + _COUNT):
                with socket.socket(family) as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return candidate
    raise BusError(f"no {_COUNT} free ports in a row on {host} from {first} on; choose another port")
