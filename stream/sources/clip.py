"""Clips: files whose video and audio replace the devices.

The only place that decides which of a file's streams are used, and how their content maps to time and shape. A clip
has a single timeline for both, which starts at the container's start and lasts as long as the longer of them. When
it loops, both restart after exactly `Clip.duration_s`, so video and audio never drift apart.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from mien.clock import NS_PER_S
from mien.config import ClipConfig
from mien.errors import SourceError
from mien.messages import Float32
from mien.stream.sources.address import is_file, printable
from mien.stream.sources.geometry import Decoded, pixel_shape
from mien.stream.sources.source import SAMPLE_RATE
from mien.stream.sources.timeline import Breaks, Stamp, trace
from mien.stream.sources.waveform import Waveform, to_float

SLOT_S = 0.02  # 320 samples: loops of whole slots keep the audio rows on the model's time axis
_BELIEVED_S = 0.25  # tolerance of a header's length; beyond it the header is not trusted
_SILENT = 1e-4  # peak of an audio track, -80 dB, up to which it counts as silent
_LISTEN_S = 1800.0  # how far into a track to look for audible sound
_TAIL_S = 1.0  # a stream that fails to decode for this long at the end is truncated
_SAY_LENGTH = ("mp4", "matroska")  # formats whose headers state a length, rather than FFmpeg estimating one
_TRACED_BYTES = 2 << 30  # larger files are taken as their headers describe them: scanning them takes too long

# FFmpeg prints a line for every damaged packet; a clip's own errors say what could not be read.
av.logging.set_level(av.logging.PANIC)


class BrokenClipError(SourceError):
    """A stream of a clip cannot be decoded to its end. What came before is good."""


@dataclass(frozen=True)
class Clip:
    """The parts of a file that are used.

    Attributes:
        path: the file. name: for display, on one line.
        video, audio: numbers of the tracks used, counted from 1 per kind without cover pictures; None if there is no
            such track.
        duration_s: the length of one loop: a whole number of 20 ms slots.
        notes: one line per kind with several tracks in the file: which one is used; and one if the file is cut off.
    """

    path: Path
    name: str
    video: int | None
    audio: int | None
    duration_s: float
    notes: tuple[str, ...]
    _streams: dict[str, int] = field(repr=False)  # kind: index in the container
    _breaks: Breaks = field(repr=False)

    @property
    def has_video(self) -> bool:
        return self.video is not None

    @property
    def has_audio(self) -> bool:
        return self.audio is not None

    def sound(self) -> Iterator[Float32]:
        """The audio from time zero: mono, 16 kHz, float32, in chunks of any length.

        Silence fills holes, and the start if the audio begins after the video: the sample count is the time.

        Raises:
            SourceError: the file is missing or unreadable, or has no audio.
            BrokenClipError: the audio is truncated.
        """
        if self.audio is None:
            raise SourceError(f"clip {self.path} has no sound; choose another file, or turn the sound off")
        waveform = Waveform()
        broken: BrokenClipError | None = None
        try:
            for t_ns, frame, _ in self._decoded("audio"):
                yield from waveform.push(frame, None if t_ns is None else t_ns / NS_PER_S)
        except BrokenClipError as error:
            broken = error
        yield from waveform.finish()
        if broken is not None:
            raise broken

    def pictures(self, from_ns: int = 0) -> Iterator[tuple[int, Decoded]]:
        """Decoded frames, each with its time since time zero in ns; times may repeat or fall.

        `from_ns` seeks: frames start at or before it, as close as the file allows.

        Raises:
            SourceError: the file is missing or unreadable, or has no video.
            BrokenClipError: the video is truncated.
        """
        if self.video is None:
            raise SourceError(f"clip {self.path} has no picture; choose another file, or turn the picture off")
        frame_ns, next_ns = 0, 0
        for t_ns, frame, stream in self._decoded("video", from_ns):
            if not frame_ns:
                frame_ns = int(NS_PER_S / (stream.average_rate or stream.guessed_rate or 25))
            t_ns = next_ns if t_ns is None else t_ns
            next_ns = t_ns + frame_ns
            if t_ns >= 0:
                yield t_ns, (frame, pixel_shape(stream))

    def _decoded(self, kind: str, from_ns: int = 0) -> Iterator[tuple[int | None, Any, Any]]:
        """Time in ns, frame and stream of everything that can be decoded."""
        with _open(self.path) as container:
            stream = container.streams[self._streams[kind]]
            stream.codec_context.thread_count = 1
            begin_ns = _begin_ns(container)
            breaks = self._breaks.get(stream.index, [])
            if from_ns > 0 and not any(self._breaks.values()):
                with contextlib.suppress(av.error.FFmpegError):  # else all is decoded, from the beginning
                    container.seek((begin_ns + from_ns) * av.time_base // NS_PER_S)
            good_ns = failed_ns = 0
            failure = ""
            try:
                for packet in _shifted(container.demux(stream), breaks):
                    try:
                        frames = packet.decode()
                    except av.error.FFmpegError as error:
                        # Damaged: the next one may be intact.
                        failure, stamp = _reason(error), packet.dts if packet.pts is None else packet.pts
                        if stamp is not None:
                            failed_ns = _ns(stamp, packet.time_base) - begin_ns
                        continue
                    for frame in frames:
                        t_ns = None if frame.pts is None else _ns(frame.pts, frame.time_base) - begin_ns
                        good_ns = max(good_ns, t_ns or 0)
                        yield t_ns, frame, stream
            except (av.error.FFmpegError, OSError) as error:
                failure, failed_ns = _reason(error), 1 << 62
        if failed_ns - good_ns > _TAIL_S * NS_PER_S:
            what = {"audio": "sound", "video": "picture"}[kind]
            where = f"breaks off after {good_ns / NS_PER_S:.1f} s" if good_ns else "cannot be decoded"
            raise BrokenClipError(f"the {what} of clip {self.name} {where}: {failure}")


def open_clip(
    path: str | Path, tracks: ClipConfig | None = None, needs: Literal["sound", "picture"] | None = None
) -> Clip:
    """Open a clip and choose its tracks.

    Covers are never used. Unless `tracks` says otherwise: the default video and audio tracks; of the audio tracks the
    first that is not silent throughout.

    Raises:
        SourceError: the file is missing, unreadable, has neither video nor audio of any length, or lacks the requested
            track or what it `needs`.
    """
    path, tracks = Path(path), tracks or ClipConfig()
    if not is_file(path):
        why = "does not exist"
        if os.path.isdir(path):
            why = "is a folder; choose a file in it"
        elif os.path.exists(path):
            why = "is a pipe or a device, which can be read only once; save it as a file first"
        raise SourceError(f"clip {printable(str(path))} {why}")
    state = path.stat()
    clip = _look(path, state.st_size, state.st_mtime_ns, tracks.audio_track, tracks.video_track)
    if needs and not (clip.has_audio if needs == "sound" else clip.has_video):
        key = "audio.source" if needs == "sound" else "video.source"
        raise SourceError(f"clip {path} has no {needs}; choose another file, or set {key} to none")
    return clip


def read_sound(path: str | Path, tracks: ClipConfig | None = None) -> Float32:
    """A clip's whole audio: shape (n,), mono, 16 kHz, float32.

    The same samples as `Clip.sound`, as far as they can be read.

    Raises:
        SourceError: nothing of it can be read.
    """
    pieces: list[Float32] = []
    try:
        pieces.extend(open_clip(path, tracks).sound())  # keeps what came before an error
    except BrokenClipError:
        if not pieces:
            raise
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


@lru_cache(16)
def _look(path: Path, size: int, _: int, audio_track: int, video_track: int) -> Clip:
    with _open(path) as container:
        begin_ns = _begin_ns(container)
        videos = [stream for stream in container.streams.video if not _is_cover(stream)]
        audios = list(container.streams.audio)
        if not videos and not audios:
            raise SourceError(f"clip {printable(str(path))} has neither picture nor sound; choose another file")
        header_s = container.duration / av.time_base if container.duration else None
        stamps: list[Stamp] = []
        if size <= _TRACED_BYTES or header_s is None:
            stamps = list(_stamps(container, [*videos, *audios], begin_ns))
            if not stamps and header_s:
                raise SourceError(f"clip {printable(str(path))} holds no picture or sound; it may be cut off")
        counts = Counter(stamp.stream for stamp in stamps)
        # A video of one still picture is taken for a cover without the flag, if there is another track.
        moving = [s for s in videos if counts[s.index] > 1] or videos
        name = printable(path.name)
        video = _choose("picture", name, videos, moving, video_track)
        audio = _choose("sound", name, audios, audios, audio_track, path)
        numbers = [s and each.index(s) + 1 for s, each in ((video, videos), (audio, audios))]
        notes = [_note(*each) for each in (("picture", name, videos, video), ("sound", name, audios, audio))]
        streams = {k: s.index for k, s in (("video", video), ("audio", audio)) if s is not None}
        stated_s = _stated_s(container, streams.values(), header_s or 0.0)
    breaks, end_ns = trace(stamp for stamp in stamps if stamp.stream in streams.values())
    seconds = end_ns / NS_PER_S
    if stamps and stated_s - seconds > _TAIL_S:
        notes.append(f"{name} is cut off: it holds {seconds:.1f} s of {stated_s:.1f} s")
    if header_s is not None and (not stamps or abs(header_s - seconds) <= _BELIEVED_S):
        seconds = header_s
    slots = math.ceil(round(seconds / SLOT_S, 6))
    if slots <= 0:
        raise SourceError(f"clip {printable(str(path))} has zero length; choose another file")
    return Clip(
        path=path,
        name=name,
        video=numbers[0],
        audio=numbers[1],
        duration_s=round(slots * SLOT_S, 2),
        notes=tuple(note for note in notes if note),
        _streams=streams,
        _breaks=breaks,
    )


def _choose(
    what: str, name: str, tracks: list[Any], usable: list[Any], requested: int, path: Path | None = None
) -> Any | None:
    """The requested track, else the default among the usable ones; with `path`, one that is not silent."""
    if requested > len(tracks) > 0:
        has = f"{len(tracks)} {what} tracks" if len(tracks) > 1 else f"one {what} track"
        key = {"sound": "audio_track", "picture": "video_track"}[what]
        raise SourceError(f"clip {name} has {has}, and `clip.{key}` is {requested}")
    if requested and tracks:
        return tracks[requested - 1]
    ranked = sorted(usable, key=lambda s: not s.disposition & av.stream.Disposition.default)
    if path is not None and len(ranked) > 1:
        return next((s for s in ranked if _is_audible(path, s.index)), ranked[0])
    return ranked[0] if ranked else None


def _stated_s(container: Any, streams: Iterable[int], header_s: float) -> float:
    """How long the tracks used are according to the file's header; 0 if it does not say."""
    if not any(name in container.format.name for name in _SAY_LENGTH):
        return 0.0
    lengths = [(container.streams[index].duration, container.streams[index].time_base) for index in streams]
    return max((float(length * base) if length and base else header_s for length, base in lengths), default=0.0)


def _note(what: str, name: str, tracks: list[Any], taken: Any) -> str:
    if len(tracks) < 2:
        return ""
    label = taken.metadata.get("title") or taken.metadata.get("language") or ""
    label = f" ({printable(label)})" if label and label != "und" else ""
    key = {"sound": "audio_track", "picture": "video_track"}[what]
    return f"{what} track {tracks.index(taken) + 1} of {len(tracks)} of {name}{label}; clip.{key} chooses another"


def _is_audible(path: Path, index: int) -> bool:
    """Whether an audio track holds anything but silence."""
    with _open(path) as container:
        stream = container.streams[index]
        heard_s = 0.0
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    if np.abs(to_float(frame.to_ndarray())).max(initial=0.0) > _SILENT:
                        return True
                    heard_s += frame.samples / frame.sample_rate
                    if heard_s > _LISTEN_S:
                        return False
        except av.error.FFmpegError:
            return False
    return False


def _stamps(container: Any, streams: list[Any], begin_ns: int) -> Iterator[Stamp]:
    """The stamps of all packets, as far as the file can be read."""
    has_dts: set[int] = set()
    try:
        for packet in container.demux(streams):
            if packet.size == 0 and packet.dts is None and packet.pts is None:
                continue  # the end
            base, index = packet.time_base, packet.stream.index
            if packet.dts is not None:
                has_dts.add(index)
            stamp = packet.dts if index in has_dts else packet.pts
            if stamp is None:
                yield Stamp(index, None)
                continue
            shown_ns = 0 if packet.pts is None else _ns(packet.pts - stamp, base)
            yield Stamp(index, _ns(stamp, base) - begin_ns, _ns(packet.duration or 0, base), shown_ns)
    except (av.error.FFmpegError, OSError):
        return


def _shifted(packets: Iterator[Any], breaks: list[tuple[int, int]]) -> Iterator[Any]:
    """Packets with their timestamps moved to the clip's timeline."""
    shift_ns, coming = 0, iter([*breaks, (1 << 62, 0)])
    number, following = next(coming)
    for count, packet in enumerate(packets):
        while count >= number:
            shift_ns = following
            number, following = next(coming)
        if shift_ns and packet.time_base:
            ticks = round(shift_ns / NS_PER_S / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet


def _open(path: Path) -> Any:
    try:
        # Not a bare name: FFmpeg takes text before a colon for a protocol.
        return av.open(f"file:{os.fspath(path)}")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise SourceError(
            f"clip {printable(str(path))} cannot be read as picture or sound: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """FFmpeg's message for an error; for some there is only a number."""
    label = getattr(error, "strerror", None) or str(error)
    return "its data are damaged" if label.startswith("Error number") else label


def _begin_ns(container: Any) -> int:
    return int(container.start_time or 0) * (NS_PER_S // int(av.time_base))


def _ns(ticks: int, base: Any) -> int:
    return int(ticks * base.numerator * NS_PER_S // base.denominator)


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is a music file's cover: a single picture, not to be watched."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def segment(samples: Float32, start_s: float | None, end_s: float | None) -> Float32:
    """A slice of a recording."""
    first = round((start_s or 0.0) * SAMPLE_RATE)
    return samples[first : None if end_s is None else round(end_s * SAMPLE_RATE)]
