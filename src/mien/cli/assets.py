"""`mien assets`: the pretrained files that mien uses, listed, fetched and verified."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from rich.progress import Progress

    from mien.assets import AssetStatus
    from mien.config import AssetsConfig


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Assets to download; default: those that the configuration needs.")
    ] = None,
    config: options.ConfigFile = None,
    list_only: Annotated[bool, typer.Option("--list", help="List all assets, and download nothing.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Download every asset.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only progress and errors.")] = False,
) -> None:
    """Download the pretrained files, and check each against its SHA-256."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from mien.assets import ASSETS, cache_folder, needed, status
    from mien.cli._terminal import make_console
    from mien.config import load_config

    settings = load_config(config)
    # An unknown name is an error before anything is fetched.
    chosen = [status(name, settings.assets).asset.name for name in names or ()]
    chosen = chosen or (list(ASSETS) if everything or list_only else needed(settings))
    states = {name: status(name, settings.assets, thorough=True) for name in chosen}
    bars = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=make_console(stderr=True),
    )  # fmt: skip
    todo = [name for name, state in states.items() if state.state != "ok"]
    if not list_only:
        with contextlib.ExitStack() as shown:
            for name in todo:
                _fetch(name, settings.assets, bars, shown)
        states = {name: status(name, settings.assets) for name in chosen}
    if not quiet:
        _print(list(states.values()), cache_folder(settings.assets), as_json)


def _fetch(name: str, config: AssetsConfig, bars: Progress, shown: contextlib.ExitStack) -> None:
    """Fetch one asset. Progress bars appear only with the first progress, so that an early error stands alone."""
    from mien.assets import ASSETS, asset_path

    task = bars.add_task(name, total=None, visible=False)

    def show(what: str, done: int, total: int) -> None:
        if not bars.live.is_started:
            shown.enter_context(bars)
        bars.update(task, description=what, completed=done, total=total, visible=True)

    asset_path(name, config, show)
    show(f"{name} is complete and right", ASSETS[name].size, ASSETS[name].size)


def _print(states: list[AssetStatus], cache: Path, as_json: bool) -> None:
    if as_json:
        from mien.files import json_text

        rows = [
            {
                "name": state.asset.name,
                "state": state.state,
                "problem": state.problem,
                "path": str(state.path),
                "size": state.asset.size,
                "licence": state.asset.licence,
                "publisher": state.asset.address,
                "packages": [list(carrier.requirements) for carrier in state.asset.carriers],
                "sha256": {file.name: file.sha256 for file in state.asset.files},
            }
            for state in states
        ]
        typer.echo(json_text(rows, indent=2))
        return
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    from mien.cli._terminal import make_console

    table = Table("asset", "state", "size", "licence", "what it is, or what is wrong")
    for state in states:
        colour = {"ok": "green", "missing": "yellow", "damaged": "red"}[state.state]
        table.add_row(
            state.asset.name,
            Text(state.state, style=colour),
            decimal(state.asset.size),
            state.asset.licence,
            state.problem or state.asset.summary,
        )
    console = make_console()
    console.print(table)
    console.print(f"cache: {cache}", soft_wrap=True)
