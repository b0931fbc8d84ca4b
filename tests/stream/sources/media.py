"""Small awkward clips that the tests make themselves."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr

from mien.config import Config, load_config
from mien.messages import Float32
from mien.stream.sources.source import SAMPLE_RATE, AudioSource, VideoSource

RATE = 48_000


def melody(seconds: float, seed: int = 0) -> Float32:
    """Sound that is nowhere like itself a little later: noise below 3 kHz, (n,), 48 kHz."""
    noise = np.random.default_rng(seed).normal(0.0, 0.2, round(seconds * 6_000)).astype(np.float32)
    low: Float32 = soxr.resample(noise, 6_000, RATE)
    return np.clip(low, -0.9, 0.9).astype(np.float32)


def at_16_khz(sound: Float32, rate: int = RATE) -> Float32:
    resampled: Float32 = soxr.resample(sound, rate, SAMPLE_RATE).astype(np.float32)
    return resampled


def lag_s(received: Float32, original: Float32, at_s: float, reach_s: float = 0.3, window_s: float = 0.25) -> float:
    """How much later the sound at a time of `original` is found in `received`, in seconds. Both at 16 kHz."""
    first, size, reach = (round(x * SAMPLE_RATE) for x in (at_s, window_s, reach_s))
    part = original[first : first + size]
    around = received[first - reach : first + size + reach]
    match = np.correlate(around, part, "valid") / np.sqrt(np.convolve(around**2, np.ones(size), "valid") + 1e-9)
    return (int(match.argmax()) - reach) / SAMPLE_RATE


def write_tracks(
    path: Path,
    tracks: Sequence[Float32],
    *,
    default: int | None = None,
    images: Sequence[np.ndarray] = (),
    factor: float = 1.0,
) -> Path:
    """A Matroska file of pictures, 25 a second, and sound tracks (n,) or (channels, n), 48 kHz PCM.

    Args:
        default: the track that is flagged as default, by index; None flags none.
        factor: how much faster than its samples the sound's stamps advance.
    """
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=25) if len(images) else None
        if video is not None:
            video.height, video.width = images[0].shape[:2]
            video.pix_fmt = "yuv420p"
        streams = []
        for number, track in enumerate(tracks):
            stream = container.add_stream("pcm_s16le", rate=RATE)
            stream.layout = "mono" if track.ndim == 1 else "stereo"
            stream.time_base = Fraction(1, RATE)
            flag = av.stream.Disposition.default
            stream.disposition = flag if number == default else av.stream.Disposition(0)
            streams.append(stream)
        container.start_encoding()
        packets = []
        for number, image in enumerate(images):
            assert video is not None
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += [(number / 25, packet) for packet in video.encode(frame)]
        if video is not None:
            packets += [(len(images) / 25, packet) for packet in video.encode(None)]
        for stream, track in zip(streams, tracks, strict=True):
            pcm = np.round(np.atleast_2d(track) * 32767).astype(np.int16)
            for at in range(0, pcm.shape[1], 1024):
                part = np.ascontiguousarray(pcm[:, at : at + 1024].T.reshape(1, -1))
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=stream.layout.name)
                frame.sample_rate = RATE
                for packet in stream.encode(frame):
                    packet.pts = packet.dts = round(at * factor)
                    packet.time_base = Fraction(1, RATE)
                    packet.duration = round(part.shape[1] / len(pcm) * factor)
                    packets.append((at * factor / RATE, packet))
        for _, packet in sorted(packets, key=lambda each: each[0]):
            container.mux(packet)
    return path


def write_part(
    path: Path, sound: Float32, images: Sequence[np.ndarray] = (), rate: int = RATE, layout: str = "mono"
) -> Path:
    """A transport stream, or the suffix's container, with AAC sound (n,), 48 kHz, at another rate, and pictures."""
    codec = "libmp3lame" if path.suffix == ".mp3" else "aac"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25) if len(images) else None
        if video is not None:
            video.height, video.width = images[0].shape[:2]
            video.pix_fmt, video.options = "yuv420p", {"crf": "14"}
        audio = container.add_stream(codec, rate=rate, layout=layout)
        audio.bit_rate = 128_000
        packets = []
        for image in images:
            assert video is not None
            packets += list(video.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        if video is not None:
            packets += list(video.encode(None))
        resampled = soxr.resample(sound, RATE, rate).astype(np.float32) if rate != RATE else sound
        planes = np.repeat(resampled[None], audio.layout.nb_channels, 0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        packets += [*audio.encode(frame), *audio.encode(None)]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def join(path: Path, *parts: Path) -> Path:
    """As `cat a b > path` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def write_picture(
    path: Path, images: Sequence[np.ndarray], pixel: Fraction | None = None, *, cover: np.ndarray | None = None
) -> Path:
    """A clip of pictures, 25 a second, perhaps with oblong pixels, perhaps with a cover as its first track."""
    with av.open(str(path), "w") as container:
        if cover is not None:
            still = container.add_stream("mjpeg", rate=25)
            still.height, still.width, still.pix_fmt = *cover.shape[:2], "yuvj420p"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10", "g": "10"}
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        container.start_encoding()
        if cover is not None:
            frame = av.VideoFrame.from_ndarray(cover, format="bgr24").reformat(format="yuvj420p")
            container.mux([*still.encode(frame), *still.encode(None)])
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def orient_clip(path: Path, matrix: tuple[int, int, int, int], height: int, width: int) -> None:
    """Write a display matrix (a, b, c, d) into the track header of an MP4, with the shift that keeps it in view."""
    one, unit = 1 << 16, 1 << 30
    a, b, c, d = matrix
    x = max(0, -a * width, -c * height, -a * width - c * height)
    y = max(0, -b * width, -d * height, -b * width - d * height)
    content = bytearray(path.read_bytes())
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, unit)
    at = content.index(identity, content.index(b"tkhd"))
    content[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, x << 16, y << 16, unit)
    path.write_bytes(content)


def without_pictures(clip: Path, path: Path) -> Path:
    """The clip with packets of its picture in which nothing can be decoded."""
    random = np.random.default_rng(0)
    with av.open(str(clip)) as source, av.open(str(path), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            written = packet
            if packet.stream.type == "video":
                written = av.Packet(random.bytes(packet.size))
                written.pts, written.dts, written.time_base = packet.pts, packet.dts, packet.time_base
                written.is_keyframe = packet.is_keyframe
            written.stream = streams[packet.stream_index]
            container.mux(written)
    return path


def configured(what: str, source: Path | str, **clip: Any) -> Config:
    """A configuration whose "video" or "audio" is this source, with keys of `clip`."""
    return load_config(None, {f"{what}.source": str(source), **{f"clip.{key}": value for key, value in clip.items()}})


def drain(source: AudioSource | VideoSource, most: int = 10**9) -> list[Any]:
    """What a source gives until it ends."""
    taken: list[Any] = []
    while not source.ended and len(taken) < most:
        item = source.read(timeout=0.1)
        if item is not None:
            taken.append(item)
    return taken
