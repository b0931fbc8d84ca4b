"""Writing a recording that is readable whenever it ends: new messages reach the disk as a chunk twice a second."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec
from mcap.writer import CompressionType, Writer

import mien
from mien.errors import RecordingError
from mien.files import reason
from mien.stream.recording.channels import ABOUT, ATTACHMENT, FORMAT, METADATA, PREDICTION, PROFILE, schema_of
from mien.stream.recording.reader import Entry, Recording

FLUSH_S = 0.5  # maximum loss when the recorder is killed
CHUNK_BYTES = 4 << 20


class RecordingWriter:
    """A growing MCAP file.

    Args:
        path: to create; an existing file is never overwritten.

    Attributes:
        messages, attachments: written so far.
        kept: per channel, the number of messages safely on disk.

    Raises:
        RecordingError: the file cannot be created, or later cannot grow; it then stays readable up to that moment.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages = 0
        self.attachments = 0
        self.kept: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._sequence: dict[str, int] = {}
        self._flushed_s = time.monotonic()
        self._file = _File(path)
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD)
        # The library ends a chunk when it is large; we also end it when it is old. That has no public name.
        self._end_chunk = getattr(self._writer, "_Writer__finalize_chunk")  # noqa: B009
        self._writer.start(PROFILE, f"mien {mien.__version__}")
        self._writer.add_metadata(METADATA, {"format": str(FORMAT), "mien": mien.__version__})
        try:
            self._sync()
        except RecordingError:
            self.abandon()
            raise

    @property
    def size_bytes(self) -> int:
        return self._file.tell()

    def write(self, channel: str, data: bytes, log_ns: int, publish_ns: int) -> None:
        if channel not in self._channels:
            name, schema = schema_of(channel)
            if name not in self._schemas:
                self._schemas[name] = self._writer.register_schema(name, "jsonschema", schema)
            self._channels[channel] = self._writer.register_channel(channel, "json", self._schemas[name])
        sequence = self._sequence.get(channel, 0)
        self._sequence[channel] = sequence + 1
        self._writer.add_message(self._channels[channel], log_ns, data, max(publish_ns, 0), sequence)
        self.messages += 1
        self.flush_if_due()

    def attach(self, name: str, data: bytes, t_ns: int) -> None:
        """Add a JSON attachment."""
        self._end_chunk()
        self._writer.add_attachment(t_ns, t_ns, name, "application/json", data)
        self.attachments += 1
        self._sync()

    def flush_if_due(self) -> None:
        """Write pending messages to disk, if half a second has passed. Call it even while nothing comes."""
        if time.monotonic() - self._flushed_s >= FLUSH_S:
            self._end_chunk()
            self._sync()

    def close(self) -> None:
        """Write the index and close. A file without it is readable too, only more slowly."""
        self._writer.finish()
        self._sync()
        self._file.close()

    def abandon(self) -> None:
        """Close without an index; a file without messages is removed."""
        self._file.close()
        if not self.kept:
            self.path.unlink(missing_ok=True)

    def _sync(self) -> None:
        self._flushed_s = time.monotonic()
        try:
            self._file.sync()
        except OSError as error:
            if not self.kept:
                raise RecordingError(f"cannot record to {self.path}: {reason(error)}; nothing was recorded") from error
            raise RecordingError(
                f"cannot continue recording to {self.path}: {reason(error)}; the file, with "
                f"{self.kept.get(PREDICTION, 0)} predictions in {self._file.written / 1e6:.2f} MB, can be read"
            ) from error
        self.kept = dict(self._sequence)
        self._flushed_s = time.monotonic()


def rewrite(recording: Recording, path: Path) -> list[tuple[int, int]]:
    """Copy the readable parts of a recording into a new one with an index.

    Returns:
        First and last log time of each part that is damaged, and left out.

    Raises:
        RecordingError: the file cannot be created, or the disk is full.
    """
    writer = RecordingWriter(path)
    damaged: list[tuple[int, int]] = []
    try:
        for entry in recording.intact():
            if not isinstance(entry, Entry):
                damaged.append(entry)
                continue
            writer.write(entry.channel, entry.data, entry.log_ns, entry.publish_ns)
            if entry.channel == ABOUT and not writer.attachments:
                writer.attach(ATTACHMENT, msgspec.json.format(entry.data, indent=2), entry.log_ns)
        writer.close()
    except RecordingError as error:
        writer.abandon()
        path.unlink(missing_ok=True)
        if isinstance(error.__cause__, OSError):
            raise RecordingError(f"cannot write {path}: {reason(error.__cause__)}") from error
        raise
    return damaged


class _File:
    """The library's output: each batch reaches the disk completely or not at all."""

    def __init__(self, path: Path) -> None:
        self._waiting = bytearray()
        self.written = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(path, flags, 0o600)  # what was said and shown is private
        except FileExistsError as error:
            raise RecordingError(f"{path} exists; choose another name or remove it") from error
        except OSError as error:
            raise RecordingError(f"cannot record to {path}: {reason(error)}") from error

    def write(self, data: bytes) -> int:
        self._waiting += data
        return len(data)

    def tell(self) -> int:
        return self.written + len(self._waiting)

    def flush(self) -> None:
        """A no-op: `sync` does it."""

    def sync(self) -> None:
        view = memoryview(bytes(self._waiting))
        done = 0
        try:
            while done < len(view):
                done += os.write(self._descriptor, view[done:])
            os.fsync(self._descriptor)
        except OSError:
            self._waiting.clear()
            self._cut_off()
            raise
        self.written += done
        self._waiting.clear()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut_off(self) -> None:
        """Undo the part of a batch that still fitted."""
        with contextlib.suppress(OSError):  # readers skip incomplete data
            os.ftruncate(self._descriptor, self.written)
