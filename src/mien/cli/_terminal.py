"""Terminal input and output: verbatim text, tables that are never truncated, key presses, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table


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


def figure_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table: names on the left, right-aligned figures in the other columns.

    Args:
        title: of the first column. columns: of the others.
        rows: a name and its figures; None for a missing one.
    """
    table = Table(title, *(Column(name, justify="right") for name in columns), box=None, pad_edge=False)
    for name, *figures in rows:
        table.add_row(str(name), *map(cell, figures))
    return table


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
