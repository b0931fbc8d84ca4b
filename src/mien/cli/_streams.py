"""Standard output and error as people have them: in any encoding, closed, full, or with a reader that has left."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from typing import Any, TextIO, cast

from mien.errors import FileError
from mien.files import reason

_IN_ASCII = {
    "█": "#", "·": ".", "•": "*", "─": "-", "━": "-", "–": "-", "—": "-", "│": "|", "┼": "+", "…": "...",
    "‘": "'", "’": "'", "“": '"', "”": '"', "±": "+/-", "×": "x", "→": "->", "≤": "<=", "≥": ">=",
}  # fmt: skip


class ReaderGoneError(Exception):
    """The program that read our output has ended: `mien watch --json | head -1`. No failure, and no reason to go on."""


class GuardedStreams:
    """Replaces `sys.stdout` and `sys.stderr` until it is left.

    Writing to standard output raises ReaderGoneError, or FileError with the reason. What cannot be said on standard
    error is dropped. Characters that an encoding lacks are written as similar ones.
    """

    def __enter__(self) -> GuardedStreams:
        _open_closed()
        codecs.register_error("mien", _in_ascii)
        self._outputs: list[_Output] = []
        for name in ("stdout", "stderr"):
            stream = cast(TextIO, getattr(sys, name))
            buffer = getattr(stream, "buffer", None)
            raw = getattr(buffer, "raw", buffer)
            if not isinstance(raw, io.RawIOBase):
                continue  # a test's, or a notebook's
            output = _Output(stream, raw, essential=name == "stdout")
            text = io.TextIOWrapper(
                io.BufferedWriter(output),
                encoding=stream.encoding,
                errors="mien",
                newline=None,
                line_buffering=name == "stderr" or stream.isatty(),
            )
            setattr(sys, name, text)
            self._outputs.append(output)
        return self

    def __exit__(self, *_: object) -> None:
        for output in self._outputs:
            output.essential = False  # the interpreter writes what is left once more when it ends


class _Output(io.RawIOBase):
    """A stream's file. `essential`: that it cannot be written is an error."""

    def __init__(self, stream: TextIO, raw: io.RawIOBase, *, essential: bool) -> None:
        self._stream = stream  # closes its file when it is collected
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
            # Windows says of a pipe without a reader that the argument is wrong.
            if isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL):
                raise ReaderGoneError from error
            raise FileError(f"cannot write to standard output: {reason(error)}") from error


def _open_closed() -> None:
    """What was closed (`mien run >&-`) is opened on nothing, before a socket or a file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: characters that resemble those that cannot be written."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(map(_resembling, lacking)), error.end


def _resembling(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _IN_ASCII.get(character) or plain or "?"
