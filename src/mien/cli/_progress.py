"""Progress of long commands: bars on a terminal, otherwise a line at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    Update = Callable[[str, int, int], None]

LINE_INTERVAL_S = 60.0


@contextmanager
def item_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress on standard error within the context. Call the yielded function with items done and total items."""
    with stage_progress() as update:
        yield lambda done, total: update(what, done, total)


@contextmanager
def stage_progress() -> Iterator[Update]:
    """Progress of each stage. Call the yielded function with the stage's name, items done and total items."""
    from mien.cli._terminal import make_console

    console = make_console(stderr=True)
    with _bars(console) if console.is_terminal else _lines() as update:
        yield update


@contextmanager
def _bars(console: Console) -> Iterator[Update]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def _lines(interval_s: float = LINE_INTERVAL_S) -> Iterator[Update]:
    """A line when a stage starts, one per interval, and one when it is done."""
    import typer

    begun_s: dict[str, float] = {}
    said_s: dict[str, float] = {}
    ended: set[str] = set()

    def update(stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        begun_s.setdefault(stage, now_s)
        if done < total:
            ended.discard(stage)
            if now_s - said_s.get(stage, -interval_s) < interval_s:
                return
        elif stage in ended:
            return
        else:
            ended.add(stage)
        said_s[stage] = now_s
        minutes, seconds = divmod(round(now_s - begun_s[stage]), 60)
        typer.echo(f"{stage}: {done}/{total}, {minutes}:{seconds:02d}", err=True)

    yield update
