"""Files that mien writes: whole or not at all, private where asked for, and refused with one line that says why."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from mien.errors import FileError, MienError

ROOM_BYTES = 64 << 10  # what must find room before work begins whose result is to be written
_PRIVATE, _PUBLIC = 0o600, 0o666  # the latter as far as the user's umask lets it

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


def write_file(path: Path, content: bytes | str, *, private: bool = False, error: type[MienError] = FileError) -> None:
    """Write a file that is there as a whole or not at all, even if the disk fills up or the power fails.

    Args:
        content: text is written in UTF-8, its line ends as they are.
        private: readable and writable by its owner alone, from its first byte on. Otherwise a file that is replaced
            keeps its permissions.
        error: the class of what is raised.

    Raises:
        MienError: it cannot be written; what was there before is still there, and nothing is left behind.
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
    """The same for what is written by a library that wants a path: it gets one beside the file's, and its end too.

    Arguments and errors as those of `write_file`.
    """
    with _explained(path, error):
        target = Path(os.path.realpath(path))  # a link stays a link
        unfinished = _beside(target)
        mode = _create(unfinished, _PRIVATE if private else _PUBLIC)
        try:
            if not private and target.exists():
                mode = stat.S_IMODE(target.stat().st_mode)
            yield unfinished
            unfinished.chmod(mode)  # some libraries make their files anew
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def check_target(path: Path, *, new: bool = False, error: type[MienError] = FileError) -> None:
    """Refuse at once what could not be written at the end: tried with a small file beside it, which is removed.

    Args:
        new: a file that is there is refused, too, instead of being replaced.
        error: the class of what is raised.

    Raises:
        MienError: the folder is missing or cannot be written, the disk is full, or files may not grow.
    """
    with _explained(path, error):
        if path.is_dir():
            raise error(f"{path} is a folder; add a file's name")
        if new and os.path.lexists(path):
            raise error(f"{path} exists; choose another name or remove it")
        if _is_special(path):
            return
        folder = path.parent
        if not folder.is_dir():
            hint = "is no folder" if folder.exists() else "does not exist; make it"
            raise error(f"cannot write {path}: {folder} {hint}, or choose another place")
        trial = _beside(path)
        _create(trial, _PRIVATE)
        try:
            with trial.open("wb") as file:
                file.write(os.urandom(ROOM_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            trial.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name in the same folder that no other file has; not longer than the path's own may be."""
    return path.with_name(f".{path.name[:30]}.{secrets.token_hex(6)}.tmp")


def _create(path: Path, mode: int) -> int:
    """An empty new file; the permissions that it got."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout: written to, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _explained(path: Path, error: type[MienError]) -> Iterator[None]:
    try:
        yield
    except OSError as refused:
        raise error(f"cannot write {path}: {reason(refused)}") from refused
