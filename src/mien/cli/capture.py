"""`mien capture`: one capture worker, alone or under a supervisor."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mien.cli import _options as options

Worker = Literal["video", "audio", "text"]


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
        run_supervised(lambda control: capture(worker, control))
        return
    source_key = "video.source" if worker == "video" else "audio.source"
    settings = options.configured(config, {source_key: source}, host=host, keys=keys, port=port, session=session)
    line = f"publishing {worker} features on {settings.bus.endpoint(worker)}; Ctrl-C ends"
    run_alone(settings, lambda control: capture(worker, control), on_ready=lambda: typer.echo(line, err=True))
