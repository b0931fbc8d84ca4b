"""Pictures and clips that the tests make themselves."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mien.messages import UInt8

MS = Fraction(1, 1000)


def portrait(side: int = 512) -> UInt8:
    """A face that smiles: NASA's portrait of an astronaut, (side, side, 3) BGR."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image for a portrait")
    image = cv2.resize(data.astronaut()[..., ::-1], (side, side), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image, dtype=np.uint8)


def head(side: int) -> UInt8:
    """The portrait's head alone, (side, side, 3) BGR."""
    return np.asarray(cv2.resize(portrait()[30:230, 125:325], (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def beside(left: UInt8, right: UInt8, width: int = 640, height: int = 360) -> UInt8:
    """Two pictures on one grey one, each in the middle of its half."""
    canvas = np.full((height, width, 3), 128, np.uint8)
    for number, picture in enumerate((left, right)):
        y = (height - picture.shape[0]) // 2
        x = number * width // 2 + (width // 2 - picture.shape[1]) // 2
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return canvas


def numbered(count: int, side: int = 64) -> list[UInt8]:
    """Grey pictures, each brighter than the one before by a step that survives compression."""
    return [np.full((side, side, 3), 20 + 200 * index // max(count - 1, 1), np.uint8) for index in range(count)]


def brightness(image: UInt8) -> float:
    return float(image.mean())


def write_clip(path: Path, images: Sequence[UInt8], times_ms: Sequence[int] | None = None) -> Path:
    """A clip without sound, 25 frames a second unless their times are given."""
    times_ms = times_ms if times_ms is not None else [40 * index for index in range(len(images))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "bf": "0"}
        stream.codec_context.time_base = MS
        for image, time_ms in zip(images, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = time_ms, MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
