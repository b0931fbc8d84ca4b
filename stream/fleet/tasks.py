"""Work on files over a cluster: an item a task, by whatever makes items on one machine.

What makes them is sent once to each process of the cluster; files are read there, at the same paths. A task whose node
was lost is done anew by Ray, and every item comes back once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from mien.errors import FleetError, MienError
from mien.stream.fleet import cluster

_AHEAD = 4  # tasks that wait for each core
_makers: dict[str, Any] = {}

Item = TypeVar("Item", bound=tuple[Any, ...])


class Maker(Protocol):
    """Makes items. It can be sent to another process before its first."""

    def make(self, *item: Any) -> Any:
        """What an item becomes."""

    def close(self) -> None:
        """Release what was opened."""


class Tasks:
    """A cluster that works on items.

    Args:
        ray: the module, connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def spread(self, items: Sequence[Item], maker: Maker) -> Iterator[tuple[Item, Any]]:
        """Each item with what became of it, as they are done.

        Raises:
            MienError: as an item's task said it; FleetError if the cluster is lost.
        """
        ray, name = self._ray, secrets.token_hex(8)
        sent = ray.put(maker)
        # A node that is lost is no fault of the task's; an error of the task itself is not tried again.
        make = ray.remote(_make).options(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")
        most = max(int(ray.cluster_resources().get("CPU", 1)) * _AHEAD, 1)
        waiting: dict[Any, Item] = {}
        coming = iter(items)
        while True:
            while len(waiting) < most and (item := next(coming, None)) is not None:
                waiting[make.remote(name, [sent], item)] = item
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for done in ready:
                yield waiting.pop(done), self._result(done)

    def _result(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MienError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise FleetError(f"the cluster could not do a part of the work: {error}") from error


@contextmanager
def tasks_at(address: str) -> Iterator[Tasks]:
    """A cluster to work with.

    Raises:
        FleetError: nothing answers there.
    """
    ray = cluster.join("tasks", address)
    try:
        yield Tasks(ray)
    finally:
        ray.shutdown()


def _make(name: str, sent: list[Any], item: tuple[Any, ...]) -> Any:
    if name not in _makers:
        import ray

        for maker in _makers.values():
            maker.close()
        _makers.clear()  # of an earlier run
        _makers[name] = ray.get(sent[0])
    return _makers[name].make(*item)
