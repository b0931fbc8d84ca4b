"""A source's actual delivery rate, independent of what it advertises, and the silence to tolerate because of it."""

from __future__ import annotations

from collections import deque

_INTERVALS = 5  # most recent ones: a single pause does not change their median
_MIN_INTERVALS = 3  # needed before the median counts
_TOLERANCE = 2.5  # intervals


class Pace:
    """The interval between deliveries, in any unit of time.

    Attributes:
        interval: the median of recent intervals; 0 before the second delivery.
    """

    def __init__(self) -> None:
        self.interval = 0.0
        self._last: float | None = None
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)

    def add(self, at: float) -> None:
        if self._last is not None and at > self._last:
            self._intervals.append(at - self._last)
            ordered = sorted(self._intervals)  # a fifth of the cost of `statistics.median`, for every message
            middle = len(ordered) // 2
            self.interval = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        self._last = at

    def is_slower(self, interval: float) -> bool:
        """Whether its usual interval is longer than the given one."""
        return len(self._intervals) >= _MIN_INTERVALS and self.interval > interval

    def patience(self, least: float, most: float) -> float:
        """How long its newest delivery stays valid: `least` for a fast source, more for a slow one, up to `most`."""
        return min(max(least, _TOLERANCE * self.interval), max(least, most))
