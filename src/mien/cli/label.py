"""`mien label`: labels stretches of a recording as training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.stream.recording.labels import LabelFile


def command(
    path: options.Recording,
    add: Annotated[
        tuple[float, float] | None, typer.Option(help="Label this stretch, in seconds.", metavar="START END")
    ] = None,
    sentiment: Annotated[float | None, typer.Option("--sentiment", "-s", help="With --add: -3 to 3.")] = None,
    emotion: Annotated[str | None, typer.Option("--emotion", "-e", help="With --add: one of the seven.")] = None,
    speaker: Annotated[str, typer.Option(help="With --add: a name for the speaker.")] = "",
    remove: Annotated[int | None, typer.Option(help="Remove a label, by its number in --list.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the labels.")] = False,
    speed: Annotated[float, typer.Option(min=0.1, help="Playback speed on the page.")] = 1.0,
    config: options.Configuration = None,
    port: options.PagePort = None,
    browser: options.Browser = True,
) -> None:
    """Label stretches of a recording: on a page, by keyboard, or with --add.

    They go to labels.csv next to it, which `mien extract` reads.
    """
    from mien.errors import DataError
    from mien.stream.recording.labels import LabelFile

    labels = LabelFile(path)
    if add is None and remove is None and not listing:
        _show_page(path, labels, speed, config, port, browser)
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
    if labels.stretches:
        typer.echo(f"in {labels.table}; train on it with: mien extract {path.parent} -o DATASET", err=True)


def _show_page(
    path: Path, labels: LabelFile, speed: float, config: Path | None, port: int | None, browser: bool
) -> None:
    """Replay the recording, and show it on a page until Ctrl-C."""
    import math
    import os
    import subprocess
    import sys

    from mien.config import load_config
    from mien.errors import RecordingError
    from mien.stream.bus.ports import free_ports
    from mien.stream.dashboard.launch import show_dashboard

    # Separate ports: a mien may be running.
    first = free_ports(first=5570)
    minutes = math.ceil(labels.seconds / 60) + 1
    settings = load_config(config, {"bus.port": first, "dashboard.port": port, "dashboard.minutes": minutes})
    arguments = ["--speed", str(speed), "--port", str(first), "--quiet"]
    command = [sys.executable, "-m", "mien", "replay", str(path), *arguments]
    replays: list[subprocess.Popen[str]] = []

    def begin(line: str) -> None:
        """Called when the page is open: play the recording from its start."""
        typer.echo(line, err=True)
        replays.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=os.name == "posix",  # Ctrl-C is ours to handle
            )
        )

    errors = ""
    try:
        show_dashboard(settings, None, window=False, browser=browser, report=begin, replayed=path)
    finally:
        for replay in replays:
            replay.terminate()
            errors = replay.communicate()[1]
    if any(replay.returncode > 0 for replay in replays):
        raise RecordingError(errors.strip().splitlines()[-1].removeprefix("mien: "))
