"""Decoded pictures as a viewer should see them: upright, not mirrored, with square pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer

from mien.messages import UInt8

_OBLONG = 8  # a more extreme pixel aspect ratio is a broken header
_side_data: Any = SideDataContainer  # its type stub lacks the arguments
_LARGEST = 8192  # largest width or height that a picture is stretched to

Decoded = tuple[Any, Fraction]  # a decoded frame (`av.VideoFrame`), and its pixel aspect ratio, width by height


def pixel_shape(stream: Any) -> Fraction:
    """A stream's pixel aspect ratio, width by height: the container's before the codec's, 1 if neither gives one."""
    for ratio in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if ratio and Fraction(1, _OBLONG) <= ratio <= _OBLONG:
            return Fraction(ratio)
    return Fraction(1)


def upright_bgr(decoded: Decoded) -> UInt8:
    """A decoded frame as (H, W, 3) BGR: with square pixels, rotated and mirrored by its display matrix.

    Phones film sideways, front cameras mirror, television has oblong pixels. Pixels are stretched in the direction with
    the lower resolution: nothing is lost.
    """
    frame, pixel = decoded
    image = np.asarray(frame.to_ndarray(format="bgr24", threads=1), np.uint8)
    if pixel != 1:
        height, width = image.shape[:2]
        size = (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))
        if max(size) <= _LARGEST:
            import cv2

            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    turns, mirrored = _orientation(frame)
    if mirrored:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, turns) if turns else image)


def _orientation(frame: Any) -> tuple[int, bool]:
    """Quarter turns to the left, and whether the picture is first mirrored left to right."""
    # `frame.side_data` caches a reference cycle in the frame: pictures would wait for the garbage collector.
    data = _side_data(frame).get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    # Row by row a, b, u, c, d, v, x, y, w: x' = a x + c y, y' = b x + d y, with y down.
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.float64)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    angle: npt.NDArray[np.float64] = np.degrees(np.arctan2(b, a))
    return round(-float(angle) / 90) % 4, bool(mirrored)
