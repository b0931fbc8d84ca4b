"""Priorities of processes and threads: what may be late gives way to the rows of features."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

_NICE = 5
_HELD = 10
_LAST = 19
_AUTOGROUP = Path("/proc/self/autogroup")
_AGAIN_S = 0.12  # Linux takes one such change in a tenth of a second, of all processes


def threads() -> frozenset[int]:
    """The threads of this process that have priorities of their own; none where the system knows no such thing."""
    return frozenset(map(int, os.listdir("/proc/self/task"))) if sys.platform == "linux" else frozenset()


def give_way(*, thread: bool = False, spared: Collection[int] = ()) -> None:
    """Give way to others where there is too little of the processor.

    A row that is late is late by milliseconds; words, and pictures for people, may wait longer.

    Args:
        thread: only the calling thread; without effect where threads have no priorities of their own.
        spared: of `threads()`, those that do not give way.
    """
    if sys.platform == "linux":
        for number in [threading.get_native_id()] if thread else threads() - set(spared):
            with contextlib.suppress(OSError):  # it may just have ended
                os.setpriority(os.PRIO_PROCESS, number, max(_NICE, os.getpriority(os.PRIO_PROCESS, number)))
        if not thread:
            _give_way_as_group()
    elif not thread and sys.platform == "win32":
        import psutil

        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    elif not thread:
        os.nice(max(0, _NICE - os.nice(0)))  # not twice


def _give_way_as_group() -> None:
    """Let other sessions of processes go first, where Linux shares the processor among them by autogroups.

    Priorities then count only within a session. Every process of mien that another started leads one of its own; that
    of a terminal is left as it is.
    """
    if os.getsid(0) == os.getpid():
        _bound_group(_AUTOGROUP, _NICE, _LAST)


def hold_back(process: int, *, held: bool) -> None:
    """Let a process that leads a session of its own give way to all others while it is held back, and no longer.

    Without effect where the processor is not shared among autogroups: what gives way by its own priority could not take
    that back.
    """
    if sys.platform == "linux":
        _bound_group(Path(f"/proc/{process}/autogroup"), _HELD if held else 0, _LAST if held else 0)


def _bound_group(autogroup: Path, least: int, most: int) -> None:
    """Have the priority of an autogroup within these, both included."""
    for _ in range(10):
        try:
            now = int(autogroup.read_text().split()[-1])
            if not least <= now <= most:
                autogroup.write_text(f"{min(max(now, least), most)}\n")
            return
        except BlockingIOError:
            time.sleep(_AGAIN_S)
        except (OSError, ValueError, IndexError):
            return  # this Linux knows no such thing
