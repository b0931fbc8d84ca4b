"""`mien weights`: which weights are in use, and whether they are the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mien.cli import _options as options


def command(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Folder of `mien train` or .safetensors file; default: the configured one."),
    ] = None,
    config: options.Configuration = None,
    restore: Annotated[bool, typer.Option("--restore", help="Put back shipped files that were replaced.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show which weights are in use, whether they are the shipped ones, and whether they match each other.

    With --restore, put back the shipped files of a checkout. Exits with 1 if the weights do not match.
    """
    from mien.config import load_config
    from mien.files import json_text
    from mien.models.weights import restore_shipped

    if restore:
        restored = restore_shipped()
        for path in restored:
            typer.echo(f"restored {path}", err=True)
        if not restored:
            typer.echo("all shipped weights are in place", err=True)
    settings = load_config(config, {"inference.checkpoint": checkpoint})
    report = _report(settings.inference.checkpoint)
    if as_json:
        typer.echo(json_text(report, indent=1))
    else:
        _print(report)
    if report["problem"]:
        raise typer.Exit(1)


def _report(choice: str) -> dict[str, Any]:
    from mien.errors import MienError
    from mien.files import sha256_of
    from mien.models.checkpoint import check_extractors, load_checkpoint
    from mien.models.weights import FILES, is_shipped, weight_set

    used = weight_set(choice)
    report: dict[str, Any] = {"checkpoint": choice, "files": {}, "problem": ""}
    for what in FILES:
        path: Path = getattr(used, what)
        exists = path.is_file()
        report["files"][what] = {
            "path": str(path), "sha256": sha256_of(path) if exists else None, "shipped": exists and is_shipped(path)
        }  # fmt: skip
    report["shipped"] = all(file["shipped"] for file in report["files"].values())
    try:
        loaded = load_checkpoint(choice)
        report |= {"id": loaded.id, "trained": loaded.header.training, "figures": loaded.header.figures}
        from mien.stream.offline.extractors import live_specs

        known = {spec.name for spec in loaded.specs}
        check_extractors(loaded, [spec for spec in live_specs(weights=used).values() if spec.name in known])
    except MienError as error:
        report["problem"] = str(error)
    return report


def _print(report: dict[str, Any]) -> None:
    for what, file in report["files"].items():
        state = "missing" if file["sha256"] is None else "shipped" if file["shipped"] else "not shipped"
        typer.echo(f"{what:<7} {state:<12} {(file['sha256'] or '-')[:16]:<17} {file['path']}")
    if report["problem"]:
        typer.secho(report["problem"], fg=typer.colors.RED, err=True)
    elif report["shipped"]:
        typer.echo(f"{report['id']}: the weights shipped with this mien")
    else:
        seed, corpora = report["trained"].get("seed"), report["trained"].get("corpora", [])
        typer.echo(f"{report['id']}: your own weights, trained on {', '.join(corpora) or 'unknown'}, seed {seed}")
