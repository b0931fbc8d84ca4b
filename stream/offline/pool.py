"""A process pool that ends with its parent, even if that is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any


def worker_pool(count: int | None, initialise: Callable[..., object] | None = None, *args: Any) -> ProcessPoolExecutor:
    """A pool of spawned processes.

    Args:
        count: number of processes; None for one per core.
        initialise: called first in each process, with `args`.
    """
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (initialise, args))


def _begin(initialise: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="lifeline", daemon=True).start()
    if initialise is not None:
        initialise(*args)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
