"""Ports for sessions that tests start."""

from __future__ import annotations

import os
import random
import socket

# Under those that a system gives to outgoing connections: a port that was free a moment ago stays so. Processes
# that run tests side by side have parts of their own.
_PART = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
RANGE = (10_000 + 5_500 * _PART, 15_500 + 5_500 * _PART)


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
