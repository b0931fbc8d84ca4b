"""`mien capture`: one capture worker, by itself or under a supervisor."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mien.cli import _options as options


class Worker(StrEnum):
    """Capture workers."""

    video = "video"
    audio = "audio"
    text = "text"


def command(
    worker: Annotated[Worker, typer.Argument(help="What to capture.")],
    config: options.Configuration = None,
    source: Annotated[str | None, typer.Option(help="Camera, microphone, URL or file.")] = None,
    host: options.Host = None,
    keys: options.KeysFolder = None,
    port: options.Port = None,
    session: options.SessionName = None,
    supervised: options.Supervised = False,
) -> None:
    """Capture one modality and publish its features, until Ctrl-C."""
    from mien.stream.capture.process import capture
    from mien.stream.processes.control import run_alone, run_supervised

    if supervised:
        run_supervised(lambda control: capture(worker.value, control))
        return
    from mien.config import load_config

    section = "video" if worker is Worker.video else "audio"
    settings = load_config(
        config,
        {
            f"{section}.source": source,
            "bus.host": host,
            "bus.keys": keys,
            "bus.port": port,
            "session": session,
        },
    )
    typer.echo(f"publishing {worker.value} features on {settings.bus.endpoint(worker.value)}; Ctrl-C ends", err=True)
    run_alone(settings, lambda control: capture(worker.value, control))
