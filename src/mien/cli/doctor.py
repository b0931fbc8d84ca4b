"""`mien doctor`: checks this machine, each with a verdict and advice."""

from __future__ import annotations

from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    config: options.ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check versions, devices, engines, assets, checkpoint and ports. Exits with 1 if something required is broken."""
    from mien.cli._checks import run_checks
    from mien.config import load_config

    rows = list(run_checks(load_config(config)))
    if as_json:
        import dataclasses

        from mien.files import json_text

        typer.echo(json_text([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        from rich.table import Column, Table
        from rich.text import Text

        from mien.cli._terminal import make_console

        table = Table("", "area", Column("finding, and what to do", overflow="fold"), box=None, padding=(0, 1))
        for row in rows:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[row.verdict]
            advice = Text(f"\n{row.advice}" if row.advice else "", style="bold")
            table.add_row(Text(f"{row.verdict:<4}", style=colour), row.area, Text(row.finding) + advice)
        console = make_console()
        console.print(table)
        counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("ok", "warn", "fail")}
        console.print(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures")
    if any(row.verdict == "fail" for row in rows):
        raise typer.Exit(1)
