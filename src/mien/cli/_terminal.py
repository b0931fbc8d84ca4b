"""Terminal input and output: verbatim text, tables that are never truncated, progress, key presses, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console without markup, emoji and highlighting: names of files and devices may contain brackets and colons.

    Styles are passed as styles, not as markup.
    """
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table at its full width: a line wrapped by a narrow terminal can be read, a truncated number cannot."""
    wide = console.options.update(max_width=10_000)
    before, needed = console.width, Measurement.get(console, wide, table).maximum
    console.width = max(before, needed)
    try:
        console.print(table, crop=False)
    finally:
        console.width = before


def print_rows(console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a plain table at its full width.

    Args:
        columns: names; those of right-aligned columns, such as of figures, begin with ">".
        rows: a cell for each column: text, a figure, or None for a missing one.
    """
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*(each if isinstance(each, Text) else cell(each) for each in row))
    print_table(console, table)


def cell(value: Any) -> str:
    """A figure, formatted for display."""
    if value is None or value == {} or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value)


@contextlib.contextmanager
def ending_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, for an orderly shutdown."""
    stopping = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupting_signals() -> Iterator[None]:
    """Within the context SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # not those nohup ignores
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def pressed_keys() -> Iterator[Callable[[], str]]:
    """Key presses, without Return: yields a function that returns those since its last call.

    There are none if standard input is not a terminal. Ctrl-C works as usual.
    """
    if not sys.stdin.isatty():
        yield lambda: ""
    elif sys.platform == "win32":
        import msvcrt

        yield lambda: "".join(iter(lambda: msvcrt.getwch() if msvcrt.kbhit() else "", ""))
    else:
        import os
        import select
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            yield (
                lambda: (
                    os.read(terminal, 64).decode(errors="replace") if select.select([terminal], [], [], 0)[0] else ""
                )
            )
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


LINE_INTERVAL_S = 60.0
Update = Callable[[str, int, int], None]  # the stage's name, items done, and total items


@contextlib.contextmanager
def item_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress on standard error within the context. Call the yielded function with items done and total items."""
    with stage_progress() as update:
        yield lambda done, total: update(what, done, total)


@contextlib.contextmanager
def stage_progress() -> Iterator[Update]:
    """Progress of each stage. Call the yielded function with the stage's name, items done and total items."""
    console = make_console(stderr=True)
    with _bars(console) if console.is_terminal else _lines() as update:
        yield update


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Update]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
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


@contextlib.contextmanager
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
