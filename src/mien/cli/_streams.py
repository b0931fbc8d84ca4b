"""Robust standard output and error: in any encoding, closed, on a full disk, or with a reader that has gone."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO, cast

from mien.errors import FileError
from mien.files import reason

_IN_ASCII = {
    "█": "#", "·": ".", "•": "*", "─": "-", "━": "-", "–": "-", "—": "-", "│": "|", "┼": "+", "…": "...",
    "‘": "'", "’": "'", "“": '"', "”": '"', "±": "+/-", "×": "x", "→": "->", "≤": "<=", "≥": ">=",
}  # fmt: skip


class ReaderGoneError(Exception):
    """The program reading our output has ended: `mien watch --json | head -1`. Not a failure, but time to stop."""


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Replaces `sys.stdout` and `sys.stderr` within a `with` block.

    If writing fails, standard output raises ReaderGoneError, or FileError with the reason; standard error drops the
    text. Characters that an encoding lacks are replaced by similar ones.
    """
    _open_closed()
    codecs.register_error("mien", _in_ascii)
    outputs: list[_Output] = []
    for name in ("stdout", "stderr"):
        stream = cast(TextIO, getattr(sys, name))
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)
        if not isinstance(raw, io.RawIOBase):
            continue  # of a test or a notebook
        outputs.append(_Output(stream, raw, essential=name == "stdout"))
        at_once = name == "stderr" or stream.isatty()
        writer = io.BufferedWriter(outputs[-1])
        text = io.TextIOWrapper(writer, encoding=stream.encoding, errors="mien", newline=None, line_buffering=at_once)
        setattr(sys, name, text)
    try:
        yield
    finally:
        for output in outputs:
            output.essential = False  # the interpreter flushes again on exit


class _Output(io.RawIOBase):
    """A stream's file. `essential`: a failed write is an error."""

    def __init__(self, stream: TextIO, raw: io.RawIOBase, *, essential: bool) -> None:
        self._stream = stream  # closes its file when garbage-collected
        self._raw = raw
        self.essential = essential

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any, /) -> int | None:
        try:
            return self._raw.write(data)
        except OSError as error:
            if not self.essential:
                return memoryview(data).nbytes
            # Windows reports a pipe without a reader as an invalid argument.
            if isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL):
                raise ReaderGoneError from error
            raise FileError(f"cannot write to standard output: {reason(error)}") from error


def _open_closed() -> None:
    """Reopen closed standard streams (`mien run >&-`) on the null device, before anything else gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: similar characters for those that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(map(_resembling, lacking)), error.end


def _resembling(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _IN_ASCII.get(character) or plain or "?"
