"""Rates and resources of the process that asks."""

from __future__ import annotations

import time
from collections import deque

import psutil


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
    """CPU and memory of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()
        self.pid = self._process.pid

    def read(self) -> tuple[float, float]:
        """Share of one core since the last call in percent, and resident memory in MiB."""
        with self._process.oneshot():
            return self._process.cpu_percent(), self._process.memory_info().rss / 2**20
