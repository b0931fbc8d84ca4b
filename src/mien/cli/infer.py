"""`mien infer`: the inference process, by itself or under a supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Folder of `mien train`, or a .safetensors file.")] = None,
    engine: Annotated[str | None, typer.Option(help="Inference engine, or auto.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to serve; beyond this machine with keys.")] = None,
    keys: Annotated[str | None, typer.Option(help="Folder of keys, see mien keys.")] = None,
    port: Annotated[int | None, typer.Option(help="First of the four ports.")] = None,
    session: Annotated[str | None, typer.Option(help="Name of the session.")] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="TOML of another session to predict in this process; may be repeated.")
    ] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Turn the features that capture workers publish into predictions, until Ctrl-C."""
    from mien.stream.inference.loop import infer
    from mien.stream.processes.control import run_alone, run_supervised

    if supervised:
        run_supervised(lambda control: infer(control, control.assignment.others))
        return
    from mien.config import load_config

    settings = load_config(
        config,
        {
            "inference.checkpoint": checkpoint,
            "inference.engine": engine,
            "bus.host": host,
            "bus.keys": keys,
            "bus.port": port,
            "session": session,
        },
    )
    typer.echo(f"publishing predictions on {settings.bus.endpoint()}; Ctrl-C ends", err=True)
    others = [load_config(path) for path in also or ()]
    run_alone(settings, lambda control: infer(control, others))
