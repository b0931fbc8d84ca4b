"""`mien dashboard`: a running mien in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    endpoint: Annotated[str | None, typer.Argument(help="Where it publishes: tcp://127.0.0.1:5560 ...")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the page; elsewhere it asks for a token.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the page; 0 takes any.")] = None,
    session: Annotated[str | None, typer.Option(help="One session only.")] = None,
    label: Annotated[Path | None, typer.Option(help="The recording that mien replays there: labels go to it.")] = None,
    window: Annotated[bool, typer.Option("--window", help="A window instead of a page.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Show a running mien on a page in the browser. It may start later, stop, and come back."""
    from mien.stream.dashboard.launch import look, look_supervised

    if supervised:
        look_supervised(window=window)
        return
    from mien.config import load_config
    from mien.stream.dashboard.launch import bus_overrides

    settings = load_config(
        config,
        {"dashboard.host": host, "dashboard.port": port, **bus_overrides(endpoint)},
    )
    look(
        settings,
        session,
        window=window,
        browser=browser,
        say=lambda line: typer.echo(line, err=True),
        replayed=label,
    )
