"""Waiting in tests for other processes and threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

_Value = TypeVar("_Value")


def wait_until(
    condition: Callable[[], _Value],
    what: str = "the condition",
    *,
    timeout_s: float = 60.0,
    meanwhile: Callable[[], object] | None = None,
) -> _Value:
    """Wait until a condition is true, and return its value.

    Args:
        what: named in the failure. timeout_s: far more than needed on a busy machine.
        meanwhile: called between two checks.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"{what} did not come within {timeout_s:g} s"
        if meanwhile is not None:
            meanwhile()
        time.sleep(0.01)
    return value


def wait_for_items(
    take: Callable[[], Iterable[_Value]],
    count: int = 1,
    *,
    timeout_s: float = 60.0,
    meanwhile: Callable[[], object] | None = None,
) -> list[_Value]:
    """At least that many items from repeated calls of `take`."""
    got: list[_Value] = []

    def enough() -> bool:
        got.extend(take())
        return len(got) >= count

    wait_until(enough, f"item {count}", timeout_s=timeout_s, meanwhile=meanwhile)
    return got
