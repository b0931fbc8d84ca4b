"""A source's actual delivery rate, independent of what it advertises, and the silence to tolerate because of it."""

from __future__ import annotations

from collections import deque

_INTERVALS = 5  # most recent ones: a single pause does not change their median
_MIN_INTERVALS = 3  # needed before the median counts
_TOLERANCE = 2.5  # intervals


class Pace:
    """The interval between deliveries, in any unit of time."""

    __slots__ = "_intervals", "_last", "_longest"

    def __init__(self) -> None:
        self._last: float | None = None
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)
        self._longest = 0.0  # of these and perhaps earlier ones: spares fast sources the median, message by message

    def add(self, at: float) -> None:
        last, self._last = self._last, at
        if last is not None and at > last:
            interval = at - last
            self._intervals.append(interval)
            if interval > self._longest:
                self._longest = interval

    @property
    def interval(self) -> float:
        """The median of recent intervals; 0 before the second delivery."""
        ordered = sorted(self._intervals) or [0.0]
        self._longest = ordered[-1]
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

    def is_slower(self, interval: float) -> bool:
        """Whether its usual interval is longer than the given one."""
        return self._longest > interval and len(self._intervals) >= _MIN_INTERVALS and self.interval > interval

    def patience(self, least: float, most: float) -> float:
        """How long its newest delivery stays valid: `least` for a fast source, more for a slow one, up to `most`."""
        if _TOLERANCE * self._longest <= least:
            return least
        return min(max(least, _TOLERANCE * self.interval), max(least, most))
