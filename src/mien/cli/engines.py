"""`mien engines`: what can run the model here, and what is compiled already."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mien.cli import _options as options


def command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all compiled networks from the cache.")] = False,
    as_json: options.Json = False,
) -> None:
    """List the inference engines of this machine and the cache of compiled networks."""
    from mien.engines.cache import Cache
    from mien.files import json_text

    cache = Cache()
    if clear:
        freed = cache.clear()
        typer.echo(f"removed {freed / 2**20:.1f} MiB of compiled networks from {cache.root}")
        return
    report = _survey(cache)
    if as_json:
        typer.echo(json_text(report, indent=2))
    else:
        _show(report)


def _survey(cache: Any) -> dict[str, Any]:
    from mien.engines.selection import BACKENDS, find_backend, find_usable
    from mien.errors import EngineError

    engines = []
    for name in BACKENDS:
        facts: dict[str, Any] = {"name": name, "precisions": [], "missing": None, "versions": {}}
        try:
            facts["precisions"] = list(find_backend(name).precisions)
            facts["versions"] = find_usable(name).versions()
        except EngineError as error:
            facts["missing"] = str(error)
        engines.append(facts)
    return {"engines": engines, "cache": str(cache.root), "entries": cache.entries()}


def _show(report: dict[str, Any]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from mien.cli._terminal import make_console

    console = make_console()
    table = Table("engine", "precisions", Column("on this machine", overflow="fold"), box=None, padding=(0, 2, 0, 0))
    for engine in report["engines"]:
        versions = ", ".join(f"{name} {version}" for name, version in engine["versions"].items())
        colour = "yellow" if engine["missing"] else "green"
        found = engine["missing"] or versions
        table.add_row(engine["name"], ", ".join(engine["precisions"]), Text(found, style=colour))
    console.print(table)
    console.print(f"\ncompiled networks in {report['cache']}", soft_wrap=True)
    for entry in report["entries"]:
        id, size_mib = f"{entry['backend']}-{entry['precision']}", entry["bytes"] / 2**20
        console.print(f"  {entry['network']:<16} {id:<14} {size_mib:7.1f} MiB   compiled in {entry['compile_s']:.1f} s")
    if not report["entries"]:
        console.print("  none yet; they are compiled when first needed, or by `mien compile`")
