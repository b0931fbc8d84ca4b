"""Clips: files whose picture and sound stand in for the devices.

A clip has one time line for both, which begins at the container's start and is as long as the longer of them.
Where it loops, both begin anew after exactly `ClipStreams.duration_s`, so picture and sound never part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soxr

from mien.errors import SourceError
from mien.messages import Float32

SAMPLE_RATE = 16_000
SLOT_S = 0.02  # 320 samples: a loop of whole slots keeps the sound's rows on the model's time axis
GAP_S = 0.05  # timestamps may wander this far from the sample count before a hole is believed


class ClipStreams(NamedTuple):
    """What a clip holds. `duration_s` is the length of one loop: a whole number of 20 ms slots."""

    has_video: bool
    has_audio: bool
    duration_s: float


def clip_streams(path: str | Path) -> ClipStreams:
    """What a clip holds.

    Raises:
        SourceError: the file is missing, unreadable, or has neither picture nor sound of any length.
    """
    with _open(path) as container:
        video = [stream for stream in container.streams.video if not _is_cover(stream)]
        has_video, has_audio = bool(video), bool(container.streams.audio)
        if not has_video and not has_audio:
            raise SourceError(f"clip {path} has neither picture nor sound; choose another file")
        seconds = container.duration / av.time_base if container.duration else _measure(container)
    slots = math.ceil(round(seconds / SLOT_S, 6))
    if slots <= 0:
        raise SourceError(f"clip {path} has zero length; choose another file")
    return ClipStreams(has_video, has_audio, round(slots * SLOT_S, 2))


def sound(path: str | Path) -> Iterator[Float32]:
    """A clip's sound from the clip's time zero: mono, 16 kHz, float32 in pieces of any length.

    Where the sound begins later than the picture, or has a hole, there is silence: a sample count is a time.

    Raises:
        SourceError: the file is missing or unreadable, or has no sound.
    """
    with _open(path) as container:
        if not container.streams.audio:
            raise SourceError(f"clip {path} has no sound; choose another file, or turn the sound off")
        begin_s = (container.start_time or 0) / av.time_base
        resampler: Any = None
        rate = count = 0  # count: input samples so far, at `rate`
        try:
            for frame in container.decode(container.streams.audio[0]):
                samples = _mono(frame)
                if resampler is None:
                    rate = frame.sample_rate
                    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
                elif frame.sample_rate != rate:
                    raise SourceError(f"clip {path} changes its sample rate on the way; convert it to one rate")
                hole_s = 0.0 if frame.time is None else frame.time - begin_s - count / rate
                if hole_s > GAP_S or (count == 0 and hole_s > 0):
                    samples = np.concatenate([np.zeros(round(hole_s * rate), np.float32), samples])
                elif count == 0 and hole_s < 0:
                    samples = samples[round(-hole_s * rate) :]  # an encoder's priming, before time zero
                count += len(samples)
                if len(samples):
                    yield _resample(resampler, samples)
        except av.error.FFmpegError as error:
            if count == 0:
                raise SourceError(f"the sound of clip {path} cannot be decoded: {error.strerror}") from error
            # A file that ends in the middle of a packet is played as far as it goes.
        if resampler is not None:
            yield _resample(resampler, np.zeros(0, np.float32), last=True)


def read_sound(path: str | Path) -> Float32:
    """A clip's whole sound: shape (n,), mono, 16 kHz, float32. The same samples as `sound` gives."""
    pieces = list(sound(path))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _open(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise SourceError(f"clip {path} does not exist")
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"clip {path} cannot be read as picture or sound: {reason}") from error


def _is_cover(stream: Any) -> bool:
    """A music file's cover is a video stream of one picture; it is no picture to watch."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _measure(container: Any) -> float:
    """Length in seconds of a file whose header does not tell it."""
    begin_s = (container.start_time or 0) / av.time_base
    ends = [
        float((packet.pts + (packet.duration or 0)) * packet.time_base)
        for packet in container.demux()
        if packet.pts is not None
    ]
    seconds: float = max(ends, default=begin_s) - begin_s
    return seconds


def _mono(frame: Any) -> Float32:
    """One decoded frame: shape (n,), channels averaged, full scale is 1, finite."""
    channels = frame.layout.nb_channels
    data = frame.to_ndarray()
    data = data if frame.format.is_planar else data.reshape(-1, channels).T  # shape (channels, n)
    if data.dtype == np.uint8:
        scaled = (data.astype(np.float32) - 128.0) / 128.0
    elif np.issubdtype(data.dtype, np.integer):
        scaled = (data / -float(np.iinfo(data.dtype).min)).astype(np.float32)
    else:
        scaled = data.astype(np.float32)
    mono: Float32 = np.nan_to_num(scaled.mean(axis=0, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return mono


def _resample(resampler: Any, samples: Float32, last: bool = False) -> Float32:
    out: Float32 = resampler.resample_chunk(samples, last=last)
    return out
