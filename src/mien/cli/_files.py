"""Writing what a command makes."""

from __future__ import annotations

from pathlib import Path

from mien.errors import MienError


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        MienError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise MienError(f"cannot write {path}: {error.strerror}") from error
