"""Errors that a user can act on. The command line prints each as one line and exits with its code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MienError(Exception):
    """Base of every error that mien raises on purpose. `str(error)` is one line that says what to do."""

    exit_code = 1

    def __init_subclass__(cls, exit_code: int | None = None) -> None:
        cls.exit_code = exit_code or cls.exit_code


class ConfigError(MienError, exit_code=2):
    """A configuration key or value that cannot be used."""


class SourceError(MienError, exit_code=3):
    """A camera, microphone or clip that cannot be opened or read."""


class AssetError(MienError, exit_code=4):
    """A pretrained file that is missing, cannot be fetched, or has the wrong hash."""


class CheckpointError(MienError, exit_code=5):
    """A checkpoint that cannot be read, or that was trained for other extractors."""


class BusError(MienError, exit_code=6):
    """An endpoint that cannot be bound or reached, or may not be bound."""


class WireError(MienError, exit_code=7):
    """A message that violates `stream/protocol.md`. Rejected and counted, never fatal to a process."""


class EngineError(MienError, exit_code=8):
    """An inference engine that is missing, fails to build, or fails its golden check."""


class DataError(MienError, exit_code=9):
    """A dataset, label file or corpus that cannot be used."""


class WorkerError(MienError, exit_code=10):
    """A process of the pipeline that died or never became ready."""


class KeysError(MienError, exit_code=11):
    """Keys that are missing, cannot be read, or must not be used."""


class RecordingError(MienError, exit_code=12):
    """A recording that cannot be written, read, or used for the requested purpose."""


class FileError(MienError, exit_code=13):
    """A file that cannot be written: disk full, no permission, or it exists already."""


class FleetError(MienError, exit_code=14):
    """A fleet that cannot be started, found or changed."""


class InputError(MienError, ValueError, exit_code=15):
    """A frame, sound or time given to `Recognizer` or `analyze` that cannot be used; it had no effect."""


def suggestion(name: str, known: Iterable[str], quote: str = "`") -> str:
    """For the message about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known := list(known), n=1)
    return f"did you mean {quote}{near[0]}{quote}?" if near else f"known: {', '.join(known)}"
