"""Ports for sessions that tests start."""

from __future__ import annotations

import random
import socket

# Under those that a system gives to outgoing connections: a port that was free a moment ago stays so.
RANGE = (10_000, 32_000)


def free_ports(count: int = 4) -> int:
    """The first of so many free ports in a row, as a session needs them."""
    chance = random.SystemRandom()
    while True:
        first = chance.randrange(*RANGE)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
