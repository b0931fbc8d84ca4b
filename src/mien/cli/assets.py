"""`mien assets`: the pretrained files that mien uses, listed, fetched and verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from mien.assets import AssetStatus


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Assets to fetch; without one, those that the configuration needs.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file as in configs/.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Show all assets, and fetch nothing.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Fetch every asset there is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but progress and errors.")] = False,
) -> None:
    """Fetch the pretrained files, and check every one against its SHA-256."""
    from mien.assets import ASSETS, cache_folder, fetch, needed, status
    from mien.config import load_config

    settings = load_config(config)
    # An unknown name is an error before anything is fetched.
    wanted = [status(name, settings.assets).asset.name for name in names or ()]
    wanted = wanted or (list(ASSETS) if everything or list_only else needed(settings))
    states = {name: status(name, settings.assets, thorough=True) for name in wanted}
    todo = [name for name, state in states.items() if state.state != "ok"]
    if todo and not list_only:
        from mien.assets import asset_path

        with _progress() as bars:
            for name in todo:
                task = bars.add_task(name, total=None)

                def show(what: str, done: int, total: int, task: object = task, bars: Progress = bars) -> None:
                    bars.update(task, description=what, completed=done, total=total)  # type: ignore[arg-type]

                if name in settings.assets.paths or settings.assets.offline:
                    # Says why it cannot be used as it is.
                    asset_path(name, settings.assets)
                fetch(name, settings.assets, show)
                size = states[name].asset.size
                bars.update(task, description=f"{name} is complete and right", completed=size, total=size)
        states = {name: status(name, settings.assets) for name in wanted}
    if not quiet:
        _print(list(states.values()), cache_folder(settings.assets), as_json)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _print(states: list[AssetStatus], cache: Path, as_json: bool) -> None:
    if as_json:
        import json

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
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    table = Table("asset", "state", "size", "licence", "what it is, or what is wrong")
    for state in states:
        colour = {"ok": "green", "missing": "yellow", "damaged": "red"}[state.state]
        table.add_row(
            state.asset.name,
            f"[{colour}]{state.state}[/]",
            decimal(state.asset.size),
            state.asset.licence,
            escape(state.problem or state.asset.summary),
        )
    console = Console()
    console.print(table)
    console.print(f"cache: {escape(str(cache))}", soft_wrap=True)
