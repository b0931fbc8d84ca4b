"""`python -m mien.stream.bench.stepped ...`: mien, but SIGUSR1 sets its wall clock forward by an hour.

Only for that process: the machine's clock is shared.
"""

from __future__ import annotations

import runpy
import signal
import time

from mien.clock import NS_PER_S


def step_wall_clock(seconds: float) -> None:
    """Step the wall clock that this process reads."""
    read, read_ns = time.time, time.time_ns
    time.time = lambda: read() + seconds
    time.time_ns = lambda: read_ns() + int(seconds * NS_PER_S)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: step_wall_clock(3600.0))
    runpy.run_module("mien", run_name="__main__")
