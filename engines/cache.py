"""On-disk cache of compiled networks.

An entry is a folder named by the SHA-256 of everything that the compiled form depends on. It holds the backend's
files, `golden.npz`, and `manifest.json` with a hash of every file. An entry is built next to its final place and
renamed when complete, under a lock that the system releases if its owner dies. Opening it checks the hashes and
that the engine reproduces the golden outputs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from mien.engines.apart import compile_in_subprocess
from mien.engines.base import Backend, Engine, Network, Precision
from mien.engines.golden import Golden
from mien.errors import EngineError, FileError
from mien.files import disk_use, reason, remove, sha256_of, write_file

log = logging.getLogger(__name__)

FORMAT = 1
GOLDEN = "golden.npz"
MANIFEST = "manifest.json"
LOCK_TIMEOUT_S = 900.0  # longer than the slowest compile
# The most recently opened ones are kept; every new checkpoint adds some.
MOST_ENTRIES, MOST_BYTES = 64, 1 << 30


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of an entry. `files` maps name to SHA-256; the key is the hash of `identity`."""

    format: int
    identity: dict[str, str]
    files: dict[str, str]
    compile_s: float


class Cache:
    """The folder with all compiled forms.

    Args:
        root: the folder; default: "engines" in the user's mien cache folder. If it is not writable, a temporary folder
            is used instead, with a warning.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or platformdirs.user_cache_path("mien") / "engines"

    def open(self, network: Network, backend: Backend, precision: Precision, threads: int) -> Engine:
        """Open the network on `backend`, compiling it on a miss, and verify it against the golden outputs.

        Raises:
            EngineError: the backend cannot compile or run this network, or deviates from the reference.
        """
        if not backend.cached:
            return backend.load(network, precision, self.root, threads)
        import filelock

        self.compile_missing([network], backend, precision, threads)
        root, key = self.writable_root(), _key(identify(network, backend, precision))
        try:
            with filelock.FileLock(root / f"{key}.lock", timeout=LOCK_TIMEOUT_S):
                return _open_locked(root / key, network, backend, precision, threads)
        except filelock.Timeout as error:
            raise EngineError(f"another process has been compiling {network.name!r} for too long") from error

    def compile_missing(
        self, networks: Sequence[Network], backend: Backend, precision: Precision, threads: int
    ) -> None:
        """Compile what is not here yet of networks that are opened together, in one process: each would load torch.

        Raises:
            EngineError: one of them cannot be compiled.
        """
        if not backend.cached:
            return
        root = self.writable_root()
        keys = [_key(identify(network, backend, precision)) for network in networks]
        missing = [each for each, key in zip(networks, keys, strict=True) if not (root / key / MANIFEST).is_file()]
        if missing:
            compile_in_subprocess(missing, backend.name, precision, threads, root)

    def write_choice(self, path: Path, choice: msgspec.Struct) -> None:
        """Store a benchmark result atomically; if the folder is not writable, it is measured again next time."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, msgspec.json.format(msgspec.json.encode(choice)))
        except (OSError, FileError) as error:
            log.warning("cannot save the choice of engine: %s", error)

    def entries(self) -> list[dict[str, Any]]:
        """Complete entries as `mien engines` lists them, without opening them."""
        found = []
        for folder in sorted(self.root.glob("*/")):
            manifest = _read_manifest(folder)
            if manifest is not None:
                known = {name: manifest.identity.get(name, "?") for name in ("network", "backend", "precision")}
                size = sum(path.stat().st_size for path in folder.iterdir())
                found.append({"key": folder.name, **known, "bytes": size, "compile_s": manifest.compile_s})
        return found

    def clear(self) -> int:
        """Remove everything and return the bytes freed. Open engines keep running.

        Raises:
            FileError: something could not be removed.
        """
        size = disk_use(self.root)
        remove(self.root.glob("*"))
        return size

    def writable_root(self) -> Path:
        """The folder, or a temporary one (with a warning) if it is not writable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                return self.root
        except OSError as error:
            temporary = _temporary_root()
            log.warning("cannot write compiled networks to %s (%s); using %s", self.root, error.strerror, temporary)
            return temporary


def identify(network: Network, backend: Backend, precision: Precision) -> dict[str, str]:
    """Everything that a compiled form depends on."""
    return {
        "format": str(FORMAT),
        "network": network.name,
        "version": network.version,
        "example": " ".join(f"{name}:{a.dtype}{list(a.shape)}" for name, a in network.example.items()),
        "outputs": " ".join(network.outputs),
        "dynamic": str(sorted((name, sorted(axes.items())) for name, axes in network.dynamic.items())),
        "backend": backend.name,
        "precision": precision,
        "machine": machine(),
    } | {f"version {name}": version for name, version in backend.versions().items()}


def _key(identity: dict[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()


@functools.cache
def machine() -> str:
    """Processor and system, as far as compiled code may depend on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        cpu = "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    except OSError:
        cpu = platform.processor()
    return f"{platform.system()} {platform.machine()} {hashlib.sha256(cpu.encode()).hexdigest()[:16]}"


@functools.cache
def _temporary_root() -> Path:
    return Path(tempfile.mkdtemp(prefix="mien-engines-"))


def _open_locked(folder: Path, network: Network, backend: Backend, precision: Precision, threads: int) -> Engine:
    if folder.exists():
        try:
            return _open_verified(folder, network, backend, precision, threads)
        except (EngineError, OSError, ValueError, KeyError, IndexError) as error:
            log.warning("the compiled form of %r cannot be used (%s); compiling it anew", network.name, error)
            shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        partial.mkdir(parents=True)
        _compile(partial, network, backend, precision, threads)
        _share_files(partial, folder.parent)
        os.replace(partial, folder)
        remove_oldest(folder.parent, MANIFEST, MOST_ENTRIES, MOST_BYTES)
        return _open_verified(folder, network, backend, precision, threads)
    except OSError as error:
        raise EngineError(f"cannot store the compiled form of {network.name!r} in {folder}: {reason(error)}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # unusable now, so unusable later
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _compile(folder: Path, network: Network, backend: Backend, precision: Precision, threads: int) -> None:
    import torch

    from mien.engines.torch_eager import build_module, make_golden

    # More threads than requested would contend with each other and with the session's other processes.
    torch.set_num_threads(threads)
    started = time.perf_counter()
    log.info("compiling %r for %s in %s", network.name, backend.name, precision)
    make_golden(network, build_module(network)).save(folder / GOLDEN)
    backend.compile(network, precision, folder)
    manifest = Manifest(
        format=FORMAT,
        identity=identify(network, backend, precision),
        files=_digests(folder),
        compile_s=round(time.perf_counter() - started, 3),
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))


def _open_verified(folder: Path, network: Network, backend: Backend, precision: Precision, threads: int) -> Engine:
    manifest = _read_manifest(folder)
    if manifest is None:
        raise EngineError("its manifest is missing or damaged")
    if _digests(folder) != manifest.files:
        raise EngineError("its files are not the ones that were stored")
    engine = backend.load(network, precision, folder, threads)
    Golden.load(folder / GOLDEN).check(engine, precision)
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST)
    return engine


def remove_oldest(root: Path, marker: str, most: int, most_bytes: int) -> None:
    """Evict the folders below `root` whose file `marker` was touched longest ago, until the limits hold.

    The newest one stays, however large it is.
    """
    opened: list[tuple[float, Path]] = []
    for path in root.glob(f"*/{marker}"):
        with contextlib.suppress(OSError):
            opened.append((path.stat().st_mtime, path.parent))
    opened.sort()
    while len(opened) > 1 and (len(opened) > most or disk_use(root) > most_bytes):
        _, folder = opened.pop(0)
        shutil.rmtree(folder, ignore_errors=True)


def _share_files(folder: Path, root: Path) -> None:
    """Hard-link files that another entry holds too: versions often differ in one file."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return
    known: dict[str, Path] = {}
    for path in root.glob(f"*/{MANIFEST}"):
        other = _read_manifest(path.parent) if path.parent != folder else None
        known |= {digest: path.parent / name for name, digest in (other.files if other else {}).items()}
    for name, digest in manifest.files.items():
        twin = known.get(digest)
        # Skip damaged files and file systems without hard links.
        with contextlib.suppress(OSError):
            if twin is not None and sha256_of(twin) == digest:
                linked = folder / f".{name}.link"
                linked.hardlink_to(twin)
                linked.replace(folder / name)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
