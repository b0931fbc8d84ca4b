"""Rates and resources of the process that asks."""

from __future__ import annotations

import time
from collections import deque

import psutil

_FRESH_S = 0.25  # a share of the processor over less than this says little


class RateMeter:
    """Events per second over the last second."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=1000)
        self.total = 0

    def tick(self, count: int = 1) -> None:
        """Count events that happened now."""
        now_s = time.monotonic()
        self._times_s.extend([now_s] * min(count, 1000))
        self.total += count

    def rate(self) -> float:
        """Events per second, over the last second."""
        since_s = time.monotonic() - 1.0
        while self._times_s and self._times_s[0] < since_s:
            self._times_s.popleft()
        return float(len(self._times_s))


class ResourceMeter:
    """CPU and memory of this process; several that ask at about the same time get the same answer."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()
        self.pid = self._process.pid
        self._read_s = 0.0
        self._answer = 0.0, 0.0

    def read(self) -> tuple[float, float]:
        """Share of one core since it was looked at last in percent, and resident memory in MiB."""
        now_s = time.monotonic()
        if now_s - self._read_s >= _FRESH_S:
            self._read_s = now_s
            with self._process.oneshot():
                self._answer = self._process.cpu_percent(), self._process.memory_info().rss / 2**20
        return self._answer
