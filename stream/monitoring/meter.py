"""Rates and resource usage of this process."""

from __future__ import annotations

import time
from collections import deque

import psutil

_FRESH_S = 0.25  # CPU usage over a shorter interval is meaningless


class RateMeter:
    """Events per second over the last second."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=1000)
        self.total = 0

    def tick(self, count: int = 1) -> None:
        now_s = time.monotonic()
        if count == 1:
            self._times_s.append(now_s)
        else:
            self._times_s.extend([now_s] * min(count, 1000))
        self.total += count

    def rate(self) -> float:
        """Events per second, over the last second."""
        since_s = time.monotonic() - 1.0
        while self._times_s and self._times_s[0] < since_s:
            self._times_s.popleft()
        return float(len(self._times_s))


class StepMeter:
    """Time per step of the work, averaged over about a second."""

    def __init__(self) -> None:
        self._spent_ns: dict[str, int] = {}
        self._pieces = 0
        self._averages: dict[str, float] = {}
        self._since_s = time.monotonic()
        self._done_ns = time.perf_counter_ns()

    def did(self, step: str | None) -> None:
        """Count the time since the last call for a step; None: nothing was done."""
        began_ns, self._done_ns = self._done_ns, time.perf_counter_ns()
        if step is not None:
            self._spent_ns[step] = self._spent_ns.get(step, 0) + self._done_ns - began_ns

    def finish(self, pieces: int) -> None:
        self._pieces += pieces

    def averages_us(self) -> dict[str, float]:
        """Microseconds per piece by step, over about the last full second; empty before."""
        now_s = time.monotonic()
        if now_s - self._since_s >= 1.0 and self._pieces:
            self._averages = {step: round(ns / self._pieces / 1e3, 1) for step, ns in self._spent_ns.items()}
            self._spent_ns, self._pieces, self._since_s = {}, 0, now_s
        return self._averages


class ResourceMeter:
    """CPU and memory of this process; concurrent callers get the same cached answer."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()
        self.pid = self._process.pid
        self._read_s = 0.0
        self._answer = 0.0, 0.0

    def read(self) -> tuple[float, float]:
        """Percentage of one core since the last measurement, and resident memory in MiB."""
        now_s = time.monotonic()
        if now_s - self._read_s >= _FRESH_S:
            self._read_s = now_s
            with self._process.oneshot():
                self._answer = self._process.cpu_percent(), self._process.memory_info().rss / 2**20
        return self._answer
