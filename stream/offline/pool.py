"""A process pool that ends with its parent, even if that is killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

from mien.interrupts import withheld_interrupts

Spread = Callable[
    [Sequence[Any], Any], Iterator[tuple[Any, Any]]
]  # makes items with a maker, and yields them in any order

_maker: Any = None  # of this process


def worker_pool(count: int | None, initialise: Callable[..., object] | None = None, *args: Any) -> ProcessPoolExecutor:
    """A pool of spawned processes. Ctrl-C, which reaches all processes of a terminal, is left to this one.

    Args:
        count: number of processes; None for one per core.
        initialise: called first in each process, with `args`.
    """
    return ProcessPoolExecutor(count, _Context(), _begin, (initialise, args))


class _Process(SpawnProcess):
    def start(self) -> None:
        with withheld_interrupts():
            super().start()


class _Context(SpawnContext):
    Process = _Process


def spread_here(jobs: int, items: Sequence[Any], maker: Any) -> Iterator[tuple[Any, Any]]:
    """Make items in processes of this machine, and yield each with its result; as `mien.stream.fleet.tasks` does.

    Args:
        jobs: number of processes; up to 1: in this one.
        items: arguments of `maker.make`, which is sent to every process before its first item.
    """
    if jobs <= 1:
        with closing(maker):
            for item in items:
                yield item, maker.make(*item)
        return
    with worker_pool(jobs, _begin_making, maker) as pool:
        try:
            yield from zip(items, pool.map(_make, items), strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_making(maker: Any) -> None:
    global _maker
    _maker = maker
    # MediaPipe must be closed before the interpreter exits: a spawned process runs finalizers, not `atexit`.
    multiprocessing.util.Finalize(None, maker.close, exitpriority=10)


def _make(item: tuple[Any, ...]) -> Any:
    return _maker.make(*item)


def _begin(initialise: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="lifeline", daemon=True).start()
    if initialise is not None:
        initialise(*args)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
