"""Process and thread priorities: work that may be late yields to the feature rows."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

_NICE = 5
_BACKGROUND = 10
_LAST = 19
_AUTOGROUP = Path("/proc/self/autogroup")
_AGAIN_S = 0.12  # Linux permits one such change per 0.1 s, system-wide


def threads() -> frozenset[int]:
    """The threads of this process with their own priorities; none if the system has no such thing."""
    return frozenset(map(int, os.listdir("/proc/self/task"))) if sys.platform == "linux" else frozenset()


def lower_priority(*, thread: bool = False, except_for: Collection[int] = ()) -> None:
    """Lower the priority, to yield when the processor is overloaded.

    Rows must not be late by more than milliseconds; words, and pictures for display, may wait longer.

    Args:
        thread: only the calling thread; no effect if threads have no priorities of their own.
        except_for: those of `threads()` that keep their priority.
    """
    if sys.platform == "linux":
        for number in [threading.get_native_id()] if thread else threads() - set(except_for):
            with contextlib.suppress(OSError):  # it may just have ended
                os.setpriority(os.PRIO_PROCESS, number, max(_NICE, os.getpriority(os.PRIO_PROCESS, number)))
        if not thread:
            _lower_group()
    elif not thread and sys.platform == "win32":
        import psutil

        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    elif not thread:
        os.nice(max(0, _NICE - os.nice(0)))  # not twice


def _lower_group() -> None:
    """Yield to other process sessions where Linux schedules by autogroups.

    Priorities then count only within a session. Every mien process started by another leads its own session; that of
    a terminal is left unchanged.
    """
    if os.getsid(0) == os.getpid():
        _bound_group(_AUTOGROUP, _NICE, _LAST)


def set_background(process: int, *, background: bool) -> None:
    """Lower the priority of a process that leads its own session while it is in the background, or restore it.

    No effect without autogroup scheduling: a process that lowered its own priority could not raise it again.
    """
    if sys.platform == "linux":
        _bound_group(Path(f"/proc/{process}/autogroup"), _BACKGROUND if background else 0, _LAST if background else 0)


def _bound_group(autogroup: Path, least: int, most: int) -> None:
    """Keep an autogroup's priority within this range, inclusive."""
    for _ in range(10):
        try:
            now = int(autogroup.read_text().split()[-1])
            if not least <= now <= most:
                autogroup.write_text(f"{min(max(now, least), most)}\n")
            return
        except BlockingIOError:
            time.sleep(_AGAIN_S)
        except (OSError, ValueError, IndexError):
            return  # not supported by this Linux
