"""Reading recordings: complete ones by their index, truncated ones up to the last complete chunk."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, Footer, Message, Metadata
from mcap.stream_reader import CRCValidationError, StreamReader, breakup_chunk
from zstandard import ZstdError

from mien.errors import RecordingError, WireError
from mien.messages import About, Prediction, Status
from mien.stream.bus.limits import check_about, check_prediction, check_status
from mien.stream.bus.preview import Preview
from mien.stream.bus.sound import Sound
from mien.stream.bus.wire import FeatureHeader, Frames
from mien.stream.recording import channels

_RECORD_LIMIT = 1 << 30
_Read = TypeVar("_Read")
_DAMAGED = (msgspec.MsgspecError, WireError, ValueError, KeyError, OverflowError, RecursionError)


def _reader(kind: type[_Read], check: Callable[[_Read], object]) -> Callable[[bytes], _Read]:
    decode = msgspec.json.Decoder(kind).decode

    def read(data: bytes) -> _Read:
        message = decode(data)
        check(message)
        return message

    return read


_read_prediction, _read_status = _reader(Prediction, check_prediction), _reader(Status, check_status)
_read_about = _reader(About, check_about)


class Entry(NamedTuple):
    """One message of a recording: channel, log time, publish time, and JSON."""

    channel: str
    log_ns: int
    publish_ns: int
    data: bytes

    def prediction(self) -> Prediction:
        """The prediction. This and all below raise RecordingError if the message is damaged or of another type."""
        return self._read(_read_prediction)

    def status(self) -> Status:
        return self._read(_read_status)

    def features(self) -> tuple[FeatureHeader, Frames]:
        """The features header, and the message in wire form."""
        return self._read(channels.features_frames)

    def preview(self) -> Preview:
        return self._read(channels.preview_of)

    def edges(self) -> bytes:
        """The edges of the face mesh, in wire form."""
        return self._read(lambda data: msgspec.json.decode(data, type=dict[str, bytes])["edges"])

    def sound(self) -> Sound:
        return self._read(channels.sound_of)

    def _read(self, read: Callable[[bytes], _Read]) -> _Read:
        try:
            return read(self.data)
        except _DAMAGED as error:
            raise RecordingError(
                f"a message on {self.channel} is damaged: {_line(error)}; copy the recording anew"
            ) from error


@dataclass(frozen=True)
class Recording:
    """A recording on disk.

    Attributes:
        path: the file.
        about: the session's description of itself at its start; None if inference never sent one.
        cut_off: it was not closed properly; everything readable is read.
        channels: those with messages.
        first_ns, last_ns: log times; 0 if it is empty.
    """

    path: Path
    about: About | None
    cut_off: bool
    channels: frozenset[str]
    first_ns: int
    last_ns: int

    @property
    def session(self) -> str:
        return self.about.session if self.about is not None else "default"

    @property
    def seconds(self) -> float:
        """From the first message to the last."""
        return (self.last_ns - self.first_ns) / 1e9

    def entries(self, names: Collection[str] | Callable[[str], bool] | None = None) -> Iterator[Entry]:
        """Messages in the order of their log times.

        Args:
            names: channels, or a predicate on channel names; None for all.

        Raises:
            RecordingError: the file is no longer readable.
        """
        wanted = names if callable(names) else (self.channels if names is None else set(names)).__contains__
        with _opened(self.path) as file:
            if self.cut_off:
                yield from (each for each in _records(file) if isinstance(each, Entry) and wanted(each.channel))
                return
            topics = [name for name in self.channels if wanted(name)]
            if not topics:
                return
            try:
                for _, channel, message in make_reader(file, validate_crcs=True).iter_messages(topics):
                    yield Entry(channel.topic, message.log_time, message.publish_time, message.data)
            except _BROKEN as error:
                raise RecordingError(
                    f"{self.path} is damaged: {_line(error)}; copy it anew, or keep the rest with `mien export --mcap`"
                ) from error

    def intact(self) -> Iterator[Entry | tuple[int, int]]:
        """As `entries`, but instead of an error the first and last log time of a part that cannot be read."""
        with _opened(self.path) as file:
            if self.cut_off:
                yield from (each for each in _records(file) if isinstance(each, Entry))
                return
            summary = make_reader(file).get_summary()
            assert summary is not None, "it was there when the recording was opened"
            for index in sorted(summary.chunk_indexes, key=lambda index: index.message_start_time):
                file.seek(index.chunk_start_offset + 9)  # behind its opcode and length
                try:
                    records = breakup_chunk(Chunk.read(ReadDataStream(file)), validate_crc=True)
                except _BROKEN:
                    yield index.message_start_time, index.message_end_time
                    continue
                messages = [record for record in records if isinstance(record, Message)]
                for record in sorted(messages, key=lambda record: record.log_time):
                    topic = summary.channels[record.channel_id].topic
                    yield Entry(topic, record.log_time, record.publish_time, record.data)

    def predictions(self) -> Iterator[Prediction]:
        """All predictions, in order."""
        for entry in self.entries({channels.PREDICTION}):
            yield entry.prediction()


_BROKEN = (
    McapError, CRCValidationError, EOFError, ValueError, MemoryError, zlib.error, KeyError, OverflowError, struct.error,
    OSError, ZstdError,
)  # fmt: skip


def _line(error: Exception) -> str:
    """An error as one line, safe to print on a terminal."""
    return "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}"[:200])


def open_recording(path: Path) -> Recording:
    """Open a recording made by this version of mien or an older one.

    Raises:
        RecordingError: it is missing, not MCAP, not a recording of mien, or of a newer version.
    """
    with _opened(path) as file:
        if file.read(8) != b"\x89MCAP0\r\n":
            raise RecordingError(f"{path} is not an MCAP file; give one that `mien record` made")
        file.seek(0)
        whole = _read_index(file)
        file.seek(0)
        try:
            return _survey(path, file, whole)
        except (*_BROKEN, msgspec.MsgspecError, WireError, AttributeError, RecursionError) as error:
            raise RecordingError(f"{path} is damaged: {_line(error)}; copy it anew") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise RecordingError(f"{path} is a folder; give the .mcap file in it") from error
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from error


def _read_index(file: BinaryIO) -> Any:
    """The summary of a file that was closed properly, else None."""
    try:
        return make_reader(file).get_summary()
    except Exception:  # whatever is wrong with its end, its beginning may be good
        return None


def _survey(path: Path, file: BinaryIO, summary: Any) -> Recording:
    about = None
    if summary is not None and summary.statistics is not None:
        reader = make_reader(file)
        formats = [m.metadata.get("format") for m in reader.iter_metadata() if m.name == channels.METADATA]
        _check_format(path, formats)
        statistics = summary.statistics
        counts = statistics.channel_message_counts
        names = frozenset(c.topic for c in summary.channels.values() if counts.get(c.id))
        if channels.ABOUT in names:
            with contextlib.suppress(*_BROKEN):  # the messages around it are damaged; reading them says so
                for _, _, message in reader.iter_messages([channels.ABOUT]):
                    about = _read_about(message.data)
                    break
        return Recording(path, about, False, names, statistics.message_start_time, statistics.message_end_time)
    formats, names_seen, first_ns, last_ns = [], set(), 0, 0
    for record in _records(file):
        if isinstance(record, Entry):
            names_seen.add(record.channel)
            first_ns = first_ns or record.log_ns
            last_ns = max(last_ns, record.log_ns)
            if record.channel == channels.ABOUT and about is None:
                about = _read_about(record.data)
        elif record.name == channels.METADATA:
            formats.append(record.metadata.get("format"))
    _check_format(path, formats)
    return Recording(path, about, True, frozenset(names_seen), first_ns, last_ns)


def _check_format(path: Path, formats: list[str | None]) -> None:
    if not formats:
        raise RecordingError(f"{path} is an MCAP file, but not a recording of mien; give one that `mien record` made")
    try:
        newest = max(int(name or "") for name in formats)
    except ValueError as error:
        raise RecordingError(f"{path} does not say which version of recordings it is; it may be damaged") from error
    if newest > channels.FORMAT:
        raise RecordingError(
            f"{path} is a recording of version {newest}, this mien reads up to {channels.FORMAT}; install a newer mien"
        )


def _records(file: BinaryIO) -> Iterator[Entry | Metadata]:
    """Messages and metadata of a file without an index, up to the first incomplete record."""
    topics: dict[int, str] = {}
    try:
        for record in StreamReader(file, validate_crcs=True, record_size_limit=_RECORD_LIMIT).records:
            match record:
                case Footer():
                    return
                case Channel():
                    topics[record.id] = record.topic
                case Message():
                    name = topics.get(record.channel_id, "")
                    yield Entry(name, record.log_time, record.publish_time, record.data)
                case Metadata():
                    yield record
    except Exception:  # the library may fail in any way on a truncated record
        return
