"""`mien cache`: mien's caches on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="datasets, engines or assets; default: all, or the first two with --clear."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Empty them; mien fills them again when needed.")] = False,
    config: Annotated[str, typer.Option("--config", "-c", help="TOML configuration, for `assets.cache`.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show mien's caches and their sizes, or clear them.

    datasets: features and transcripts of data given to `mien eval`. engines: compiled networks. assets: the
    pretrained files.
    """
    import os
    from pathlib import Path

    from mien.assets import ASSETS
    from mien.assets import cache_folder as assets_folder
    from mien.config import load_config
    from mien.engines.cache import MOST_BYTES as MOST_ENGINE_BYTES
    from mien.engines.cache import Cache
    from mien.errors import ConfigError, FileError
    from mien.files import disk_use, json_text, remove
    from mien.stream.offline import labelled

    assets = load_config(Path(config) if config else None).assets
    caches: dict[str, tuple[Path, int | None]] = {
        "datasets": (labelled.cache_folder(), labelled.MOST_BYTES),
        "engines": (Cache().root, MOST_ENGINE_BYTES),
        "assets": (assets_folder(assets), None),
    }
    unknown = sorted(set(names or ()) - set(caches))
    if unknown:
        raise ConfigError(f"there is no cache {unknown[0]!r}; known: {', '.join(caches)}")
    chosen = names or (["datasets", "engines"] if clear else list(caches))
    for name in chosen:
        folder, _ = caches[name]
        if os.path.lexists(folder) and not folder.is_dir():
            hint = "correct `assets.cache`" if name == "assets" and assets.cache else "move it away"
            raise ConfigError(f"{folder}, the cache of {name}, is not a folder; {hint}")
    # The assets' folder may be chosen by the user, and locks of datasets may be held: touch nothing else there.
    patterns = {"datasets": ["*/"], "engines": ["*"], "assets": list(ASSETS)}
    report, failures = [], []
    for name in chosen:
        folder, most = caches[name]
        size, failed = disk_use(folder), False
        try:
            remove([path for pattern in patterns[name] for path in folder.glob(pattern)] if clear else ())
        except FileError as error:
            failed = True
            failures.append(error)
        cleared = clear and not failed
        report.append({"name": name, "bytes": size, "most_bytes": most, "path": str(folder), "cleared": cleared})
        if not as_json:
            bound = f"at most {most / 2**20:.0f} MiB" if most is not None else "no bound"
            state = "not cleared" if failed else "cleared" if clear else bound
            typer.echo(f"{name:<9} {size / 2**20:8.1f} MiB   {state:<17} {folder}")
    if as_json:
        typer.echo(json_text(report, indent=1))
    if failures:
        raise failures[0]
