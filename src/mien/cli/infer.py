"""`mien infer`: the inference process, alone or under a supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    config: options.Configuration = None,
    checkpoint: options.OtherCheckpoint = None,
    engine: options.Engine = None,
    host: options.Host = None,
    keys: options.KeysFolder = None,
    port: options.Port = None,
    session: options.SessionName = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="Configuration of another session to serve. Repeatable.")
    ] = None,
    supervised: options.Supervised = False,
) -> None:
    """Predict from the features that capture workers publish, until Ctrl-C."""
    from mien.stream.inference.loop import infer
    from mien.stream.processes.control import run_alone, run_supervised

    if supervised:
        run_supervised(lambda control: infer(control, control.assignment.others))
        return
    from mien.config import load_config

    settings = options.configured(
        config, checkpoint=checkpoint, engine=engine, host=host, keys=keys, port=port, session=session
    )
    line = f"publishing predictions on {settings.bus.endpoint()}; Ctrl-C ends"
    others = [load_config(path) for path in also or ()]
    run_alone(settings, lambda control: infer(control, others), on_ready=lambda: typer.echo(line, err=True))
