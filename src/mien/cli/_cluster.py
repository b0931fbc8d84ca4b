"""The option `--ray`, by which work on files is done by a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mien.stream.offline.extraction import Spread

HELP = "A Ray cluster that does the work: auto, or HOST:6379. Its nodes have mien, and the files at the same paths."


@contextmanager
def spread_at(address: str) -> Iterator[Spread | None]:
    """What has items made at a cluster; None without an address: they are made here.

    Raises:
        FleetError: no cluster answers there.
    """
    if not address:
        yield None
        return
    from mien.stream.fleet.tasks import tasks_at

    with tasks_at(address) as spread:
        yield spread
