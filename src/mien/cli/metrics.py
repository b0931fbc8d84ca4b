"""`mien metrics`: figures of a mien that runs, for Prometheus."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    endpoint: options.Endpoint = "tcp://127.0.0.1:5560",
    session: Annotated[str, typer.Option(help="Name of the session.")] = "default",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0: any.")] = 9464,
    keys: options.Keys = "",
) -> None:
    """Serve /metrics and /health of a running session on this machine, until Ctrl-C."""
    from mien.cli._terminal import ending_signals
    from mien.stream.monitoring.exporter import Exporter

    with ending_signals() as stopping, closing(Exporter(endpoint, session, port, keys=keys)) as exporter:
        typer.echo(f"http://127.0.0.1:{exporter.port}/metrics and /health; Ctrl-C ends", err=True)
        while not stopping.wait(0.5):
            pass
