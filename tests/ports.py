"""Ports for sessions that tests start."""

from __future__ import annotations

import os
import random
import socket

# Below the ephemeral range: a port that was free a moment ago stays free. Parallel test processes have ranges of their
# own.
_PART = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
RANGE = (10_000 + 5_500 * _PART, 15_500 + 5_500 * _PART)


def free_ports(count: int = 4) -> int:
    """The first of that many consecutive free ports, as a session needs them."""
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
