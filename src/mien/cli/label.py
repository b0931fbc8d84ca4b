"""`mien label`: stretches of a recording become training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    path: Annotated[Path, typer.Argument(help="A recording of mien (MCAP).")],
    add: Annotated[
        tuple[float, float] | None, typer.Option(help="Label from here to there, in seconds.", metavar="START END")
    ] = None,
    sentiment: Annotated[float | None, typer.Option("--sentiment", "-s", help="With --add: -3 to 3.")] = None,
    emotion: Annotated[str | None, typer.Option("--emotion", "-e", help="With --add: one of the seven.")] = None,
    speaker: Annotated[str, typer.Option(help="With --add: who speaks, by any name.")] = "",
    remove: Annotated[int | None, typer.Option(help="Take back a label, by its number in --list.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the labels.")] = False,
) -> None:
    """Label stretches of a recording. The labels go to labels.csv beside it, which `mien extract` reads."""
    from mien.errors import DataError
    from mien.stream.recording.labels import LabelFile

    labels = LabelFile(path)
    if add is not None:
        labels.add(*add, sentiment=sentiment, emotion=emotion, speaker=speaker)
    if remove is not None:
        if not 1 <= remove <= len(labels.stretches):
            raise DataError(f"there is no label {remove}; {path} has {len(labels.stretches)}")
        labels.remove(labels.stretches[remove - 1])
    for number, stretch in enumerate(labels.stretches, 1):
        value = "" if stretch.sentiment is None else f"{stretch.sentiment:+.1f}"
        label = f"{value} {stretch.emotion or ''}".strip()
        typer.echo(f"{number:3d}  {stretch.start_s:7.2f} - {stretch.end_s:7.2f}  {label}  {stretch.text}")
    if add is not None or listing:
        typer.echo(f"{labels.table}: train on it with  mien extract {path.parent} -o DATASET", err=True)
