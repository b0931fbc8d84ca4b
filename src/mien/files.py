"""Writing files: atomically, private if requested, with errors of one line that say why."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mien.errors import FileError, MienError

ROOM_BYTES = 64 << 10  # free space required before starting work whose result will be written
_PRIVATE, _PUBLIC = 0o600, 0o666  # the latter subject to the user's umask

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EFBIG: "the file may not grow any more (ulimit -f)",
    errno.EROFS: "the disk can only be read",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "its name is too long",
} | ({errno.EDQUOT: "your share of the disk is used up"} if hasattr(errno, "EDQUOT") else {})


def reason(error: OSError) -> str:
    """Why the system refused, in words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder: Path, names: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of several files in a folder."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()[:16]


def disk_use(root: Path) -> int:
    """Bytes of the files below a folder, which others may be writing to; hard links count once."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(root):  # skips folders that another process removes concurrently
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(place, name))
                if stat.S_ISREG(found.st_mode):
                    sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON text. Numbers that are not finite become null: JSON has none."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=indent)


def write_file(path: Path, content: bytes | str, *, private: bool = False, error: type[MienError] = FileError) -> None:
    """Write a file atomically, even if the disk fills up or the power fails.

    Args:
        content: text is written as UTF-8, line endings unchanged.
        private: readable and writable by its owner only, from the first byte on. Otherwise a replaced file keeps its
            permissions.
        error: the class of the error raised.

    Raises:
        MienError: it cannot be written; the previous file is untouched, and nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    with _explained(path, error):
        if _is_special(path):
            path.write_bytes(data)
            return
    with whole_file(path, private=private, error=error) as unfinished:
        unfinished.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: Path, *, private: bool = False, error: type[MienError] = FileError) -> Iterator[Path]:
    """Atomic writing for a library that takes a path: yields one in the same folder, with the same suffix.

    Arguments and errors as for `write_file`.
    """
    with _explained(path, error):
        target = Path(os.path.realpath(path))  # follows symbolic links, so that a link stays a link
        unfinished = _temporary_path(target)
        mode = _create(unfinished, _PRIVATE if private else _PUBLIC)
        try:
            if not private and target.exists():
                mode = stat.S_IMODE(target.stat().st_mode)
            yield unfinished
            unfinished.chmod(mode)  # some libraries create the file anew
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def remove(paths: Iterable[Path]) -> None:
    """Remove files, and folders with everything in them, as far as possible.

    Raises:
        FileError: something is left; of several failures the first.
    """
    failures = []
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                if path.exists():
                    shutil.rmtree(path)  # says what stands in the way
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as refused:
            failures.append(FileError(f"cannot remove {path}: {reason(refused)}"))
    if failures:
        raise failures[0]


def make_folder(path: Path, *, error: type[MienError] = FileError) -> None:
    """Make a folder, and those above it, unless it exists.

    Raises:
        MienError: it cannot be made, or files cannot be made in it; of the class `error`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial = _temporary_path(path / "trial")
        _create(trial, _PRIVATE)
        trial.unlink()
    except FileExistsError as refused:
        raise error(f"{path} is a file; choose another folder") from refused
    except OSError as refused:
        raise error(f"cannot make or fill the folder {path}: {reason(refused)}; choose another one") from refused


def check_target(
    path: Path, *, inputs: Iterable[Path] = (), new: bool = False, error: type[MienError] = FileError
) -> None:
    """Fail early if a file could not be written at the end: tried with a small temporary file in the same folder.

    Args:
        inputs: what the same command reads, or writes elsewhere: it must not be replaced.
        new: an existing file is an error, too, instead of being replaced.
        error: the class of the error raised.

    Raises:
        MienError: it is one of `inputs`, the folder is missing or not writable, the disk is full, or a file size limit
            applies.
    """
    with _explained(path, error):
        if path.is_dir():
            raise error(f"{path} is a folder; add a file's name")
        if os.path.realpath(path) in {os.path.realpath(each) for each in inputs} and not _is_special(path):
            raise error(f"{path} is used by this command already; choose another name")
        if new and os.path.lexists(path):
            raise error(f"{path} exists; choose another name or remove it")
        if _is_special(path):
            return
        folder = path.parent
        if not folder.is_dir():
            hint = "is no folder" if folder.exists() else "does not exist; make it"
            raise error(f"cannot write {path}: {folder} {hint}, or choose another place")
        trial = _temporary_path(path)
        _create(trial, _PRIVATE)
        try:
            with trial.open("wb") as file:
                file.write(os.urandom(ROOM_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            trial.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    """A unique name in the same folder, no longer than names may be."""
    return path.with_name(f".{path.name[:30]}.{secrets.token_hex(6)}.tmp")


def _create(path: Path, mode: int) -> int:
    """Create an empty file, and return its permissions."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _is_special(path: Path) -> bool:
    """Whether it is a device or pipe, such as /dev/stdout: written to, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _explained(path: Path, error: type[MienError]) -> Iterator[None]:
    try:
        yield
    except OSError as refused:
        raise error(f"cannot write {path}: {reason(refused)}") from refused
