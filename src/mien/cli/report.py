"""`mien report`: a recording as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    path: options.Recording,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; default: next to the recording.")] = None,
) -> None:
    """Write a report of a recording: one self-contained page that prints well."""
    from mien.files import check_target, write_file
    from mien.stream.recording.report import report
    from mien.stream.recording.table import read_table

    target = out if out is not None else path.with_suffix(".html")
    check_target(target, inputs=[path])
    write_file(target, report(read_table(path)), private=True)
    typer.echo(f"wrote {target}", err=True)
