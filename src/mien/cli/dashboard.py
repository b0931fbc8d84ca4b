"""`mien dashboard`: a running mien in the browser."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    endpoint: Annotated[
        str | None, typer.Argument(help="Address that mien publishes on, as tcp://127.0.0.1:5560.")
    ] = None,
    config: options.Configuration = None,
    host: Annotated[str | None, typer.Option(help="Address of the page; beyond loopback it requires a token.")] = None,
    port: options.PagePort = None,
    session: options.OneSession = None,
    label: Annotated[Path | None, typer.Option(help="The recording being replayed, to save labels with.")] = None,
    window: Annotated[bool, typer.Option("--window", help="A window instead of a page.")] = False,
    browser: options.Browser = True,
    supervised: options.Supervised = False,
) -> None:
    """Show a running mien in the browser; it may start later or restart."""
    from mien.stream.dashboard.launch import show_dashboard, show_supervised

    if supervised:
        show_supervised(window=window)
        return
    from mien.config import load_config
    from mien.stream.dashboard.launch import bus_overrides

    settings = load_config(config, {"dashboard.host": host, "dashboard.port": port, **bus_overrides(endpoint)})
    report = partial(typer.echo, err=True)
    show_dashboard(settings, session, window=window, browser=browser, report=report, replayed=label)
