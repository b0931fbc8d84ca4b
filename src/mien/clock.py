"""One timeline for all processes of a session.

Capture times look like Unix time in nanoseconds, but advance with the monotonic clock: an NTP step or a user setting
the wall clock cannot move them. The anchor is read once, by the process that starts the session, and passed to all its
processes, so that times of two processes on one host can be compared to the microsecond.
"""

from __future__ import annotations

import time

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


def read_anchor_ns() -> int:
    """The offset from `time.monotonic_ns()` to Unix time, measured now. Unit: ns."""
    tries = []
    for _ in range(5):
        before_ns, wall_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        tries.append((after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2))
    # The quickest try: the process may be preempted between the clock reads.
    return min(tries)[1]


class Clock:
    """The session's clock.

    Args:
        anchor_ns: offset from the monotonic clock to Unix time, in ns; read now if omitted.
    """

    def __init__(self, anchor_ns: int | None = None) -> None:
        self.anchor_ns = read_anchor_ns() if anchor_ns is None else anchor_ns

    def now_ns(self) -> int:
        """Session time now, in ns."""
        return time.monotonic_ns() + self.anchor_ns
