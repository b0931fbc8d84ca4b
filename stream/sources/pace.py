"""How often a source really delivers, whatever it promises, and how long silence is therefore no loss."""

from __future__ import annotations

from collections import deque

_INTERVALS = 5  # newest ones: a single pause does not change their median
_RULE = 3  # of them make a rule
_PATIENCE = 2.5  # intervals


class Pace:
    """The interval between deliveries, in any unit of time.

    Attributes:
        interval: the median of the newest intervals; 0 before the second delivery.
    """

    def __init__(self) -> None:
        self.interval = 0.0
        self._last: float | None = None
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)

    def hear(self, at: float) -> None:
        """Something was delivered."""
        if self._last is not None and at > self._last:
            self._intervals.append(at - self._last)
            ordered = sorted(self._intervals)  # a fifth of what `statistics.median` takes, for every message
            middle = len(ordered) // 2
            self.interval = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        self._last = at

    def is_slower(self, interval: float) -> bool:
        """Whether it delivers less often as a rule than once in an interval."""
        return len(self._intervals) >= _RULE and self.interval > interval

    def patience(self, least: float, most: float) -> float:
        """How long its newest delivery counts: `least` for a quick source, longer for a slow one, at most `most`."""
        return min(max(least, _PATIENCE * self.interval), max(least, most))
