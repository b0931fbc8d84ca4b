"""`mien report`: a recording as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    path: Annotated[Path, typer.Argument(help="A recording of mien (MCAP).")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; else beside the recording.")] = None,
) -> None:
    """Write a report of a recording: one self-contained page that prints well."""
    from mien.cli._files import write_text
    from mien.stream.recording.report import report
    from mien.stream.recording.table import read_table

    target = out if out is not None else path.with_suffix(".html")
    write_text(target, report(read_table(path)))
    typer.echo(f"wrote {target}", err=True)
