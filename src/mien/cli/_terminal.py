"""What commands print for people, text as it is and tables that are never cut; keys that they press; Ctrl-C."""

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
    """A console that prints brackets, colons and numbers as they are: names of files and devices may hold any of them.

    Styles are given as styles, not as markup.
    """
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as it needs: a line that a narrow terminal wraps can be read, a cut number cannot."""
    wide = console.options.update(max_width=10_000)
    before, needed = console.width, Measurement.get(console, wide, table).maximum
    console.width = max(before, needed)
    try:
        console.print(table, crop=False)
    finally:
        console.width = before


def figure_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table: names on the left, and figures, right-aligned, in the columns after them.

    Args:
        title: of the first column. columns: of the others.
        rows: a name and its figures; None where there is none.
    """
    table = Table(title, *(Column(name, justify="right") for name in columns), box=None, pad_edge=False)
    for name, *figures in rows:
        table.add_row(str(name), *map(cell, figures))
    return table


def cell(value: Any) -> str:
    """A figure as a person reads it."""
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
    """Ctrl-C and SIGTERM set the event, and so end a command in order instead of in the middle of something."""
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
    """Keys as they are pressed, without Return: gives a function that returns those since its last call.

    Where standard input is no terminal there are none. Ctrl-C stays what it is.
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
