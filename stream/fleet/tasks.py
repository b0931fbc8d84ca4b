"""Processing files on a cluster: one task per item, with the same maker as on a single machine.

The maker is sent once to each process of the cluster, which reads files at the same paths. Ray repeats the tasks of a
lost node, and every item is returned once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from mien.errors import FleetError, MienError
from mien.stream.fleet import cluster

_AHEAD = 4  # tasks queued per core
_makers: dict[str, Any] = {}


@contextmanager
def tasks_at(address: str) -> Iterator[Callable[[Sequence[Any], Any], Iterator[tuple[Any, Any]]]]:
    """A function that runs items on a cluster and yields each with its result, as they are done.

    Raises:
        FleetError: nothing answers there, or from the function: the cluster is lost. MienError: as raised by the task.
    """
    ray = cluster.join("tasks", address)
    try:
        yield partial(_spread, ray)
    finally:
        ray.shutdown()


def _spread(ray: Any, items: Sequence[Any], maker: Any) -> Iterator[tuple[Any, Any]]:
    name = secrets.token_hex(8)
    sent = ray.put(maker)
    # Retry tasks of a lost node, but not those that raised an error themselves.
    make = ray.remote(_make).options(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")
    most = max(int(ray.cluster_resources().get("CPU", 1)) * _AHEAD, 1)
    waiting: dict[Any, Any] = {}
    coming = iter(items)
    while True:
        while len(waiting) < most and (item := next(coming, None)) is not None:
            waiting[make.remote(name, [sent], item)] = item
        if not waiting:
            return
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for done in ready:
            yield waiting.pop(done), _result(ray, done)


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MienError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise FleetError(f"the cluster could not do a part of the work: {error}") from error


def _make(name: str, sent: list[Any], item: tuple[Any, ...]) -> Any:
    if name not in _makers:
        import ray

        for maker in _makers.values():
            maker.close()
        _makers.clear()  # of an earlier run
        _makers[name] = ray.get(sent[0])
    return _makers[name].make(*item)
