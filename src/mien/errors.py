"""Errors that a user can act on. The command line prints each as one line and exits with its code."""

from __future__ import annotations


class MienError(Exception):
    """Base of every error that mien raises on purpose. `str(error)` is one line that says what to do."""

    exit_code = 1


class ConfigError(MienError):
    """A configuration key or value that cannot be used."""

    exit_code = 2


class SourceError(MienError):
    """A camera, microphone or clip that cannot be opened or read."""

    exit_code = 3


class AssetError(MienError):
    """A pretrained file that is missing, cannot be fetched, or has the wrong hash."""

    exit_code = 4


class CheckpointError(MienError):
    """A checkpoint that cannot be read, or that was trained for other extractors."""

    exit_code = 5


class BusError(MienError):
    """An endpoint that cannot be bound or reached, or may not be bound."""

    exit_code = 6


class WireError(MienError):
    """A message that violates `stream/protocol.md`. Rejected and counted, never fatal to a process."""

    exit_code = 7


class EngineError(MienError):
    """An inference engine that is missing, fails to build, or fails its golden check."""

    exit_code = 8


class DataError(MienError):
    """A dataset, label file or corpus that cannot be used."""

    exit_code = 9


class WorkerError(MienError):
    """A process of the pipeline that died or never became ready."""

    exit_code = 10


class KeysError(MienError):
    """Keys that are missing, cannot be read, or must not be used."""

    exit_code = 11


class RecordingError(MienError):
    """A recording that cannot be written, read, or used for the requested purpose."""

    exit_code = 12


class FileError(MienError):
    """A file that cannot be written: disk full, no permission, or it exists already."""

    exit_code = 13


class FleetError(MienError):
    """A fleet that cannot be started, found or changed."""

    exit_code = 14


class InputError(MienError, ValueError):
    """A frame, sound or time given to `Recognizer` or `analyze` that cannot be used; it had no effect."""

    exit_code = 15
