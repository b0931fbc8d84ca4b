"""Faces that are too small to be found in the picture as a whole: looked for in parts of it, and followed in one.

MediaPipe sees a picture at 128 or 192 pixels a side, in which a face of a tenth of the width is a smudge. Its detector
finds faces of 45 pixels in parts of 300. Parts are looked at one by one, seldom enough to cost no more than a twentieth
of a core, and only while no face is followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mien.clock import NS_PER_MS
from mien.messages import Float32, UInt8

if TYPE_CHECKING:
    from mien.stream.modalities.face_mesh import Face, FaceMesh

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

PART_NS = 60 * NS_PER_MS  # between two parts; one costs about 2 ms
SURE = 0.7  # score of the detector: things that are no face had up to 0.66 where faces of 45 pixels had 0.9
_PART = 5 / 12  # side of a part, of the picture's shorter side
_STEP = 0.55  # from part to part, of a part's side
_AROUND = 4.0  # side of the region in which a small face is followed, in widths of the face
_LEAST = 128  # pixels of that side
_EDGE = 0.12  # a face nearer to the region's edge than this share of its side: the region is moved
_SIZES = 0.12, 0.5  # width of a face in its region that needs no other one
_LARGE = 0.3  # width of a face, of the picture's shorter side, that the whole picture is enough for
_TAN = math.tan(math.radians(63.0) / 2)  # MediaPipe's camera: half of its vertical field of view
_STILL_SIDE = 256  # pixels to which a small still is enlarged together with its margin


@dataclass(frozen=True)
class Region:
    """A part of a picture.

    Attributes:
        left, top, right, bottom: whole pixels.
    """

    left: int
    top: int
    right: int
    bottom: int

    def of(self, picture: UInt8) -> UInt8:
        """That part of it."""
        return picture[self.top : self.bottom, self.left : self.right]

    def whole_box(self, box: Box) -> Box:
        """A box in the part, in pixels of the whole picture."""
        return box[0] + self.left, box[1] + self.top, box[2] + self.left, box[3] + self.top

    def whole_matrix(self, matrix: Float32, width: int, height: int) -> Float32:
        """A head's place (4, 4) as the camera of the whole picture sees it, from the one of this part alone.

        The part was taken for a picture of its own, of the same field of view: what fills it seems near and central.
        """
        part_width, part_height = self.right - self.left, self.bottom - self.top
        depth = max(-float(matrix[2, 3]), 1e-3)
        focal, whole_focal = part_height / (2 * _TAN), height / (2 * _TAN)
        u = self.left + part_width / 2 + focal * float(matrix[0, 3]) / depth
        v = self.top + part_height / 2 - focal * float(matrix[1, 3]) / depth
        far = depth * height / part_height
        placed = matrix.copy()
        placed[:3, 3] = (u - width / 2) * far / whole_focal, (height / 2 - v) * far / whole_focal, -far
        return placed


def region_around(box: Box, width: int, height: int) -> Region:
    """The part in which a face is followed, inside a picture of that size."""
    side = min(max(_AROUND * (box[2] - box[0]), _LEAST), width, height)
    left = min(max((box[0] + box[2] - side) / 2, 0), width - side)
    top = min(max((box[1] + box[3] - side) / 2, 0), height - side)
    return Region(int(left), int(top), int(left + side), int(top + side))


def region_for(region: Region, box: Box, width: int, height: int) -> Region | None:
    """The part in which a face is followed further: the same while it fits, None where the whole picture will do."""
    size = box[2] - box[0]
    if size >= _LARGE * min(width, height):
        return None
    side = region.right - region.left
    margin = _EDGE * side
    inside = (
        (region.left == 0 or box[0] > region.left + margin)
        and (region.top == 0 or box[1] > region.top + margin)
        and (region.right == width or box[2] < region.right - margin)
        and (region.bottom == height or box[3] < region.bottom - margin)
    )
    fits = _SIZES[0] * side <= size <= _SIZES[1] * side or side == _LEAST
    return region if inside and fits else region_around(box, width, height)


class Search:
    """Which part of the picture is looked at next."""

    def __init__(self) -> None:
        self._looked_ns: int | None = None
        self._next = 0

    def part(self, width: int, height: int, t_ns: int) -> Region | None:
        """The part to look at now; None while it is not time for one."""
        if self._looked_ns is not None and 0 <= t_ns - self._looked_ns < PART_NS:
            return None
        self._looked_ns = t_ns
        parts = _parts(width, height)
        self._next = (self._next + 1) % len(parts)
        return parts[self._next]


def _parts(width: int, height: int) -> list[Region]:
    """Parts that overlap, so that any small face lies whole in one of them."""
    side = round(min(width, height) * _PART)

    def begins(length: int) -> list[int]:
        count = math.ceil((length - side) / (side * _STEP)) + 1
        return [round(k * (length - side) / max(count - 1, 1)) for k in range(count)]

    return [Region(x, y, x + side, y + side) for y, x in product(begins(height), begins(width))]


def find_in_still(mesh: FaceMesh, image: UInt8) -> Face | None:
    """The face in a picture that it fills, with landmarks in the picture's own pixels.

    The detector knows faces with something around them: half of the picture's size in its mean colour is added on
    every side, which finds 95 % of FER2013 instead of 84 %.
    """
    height, width = image.shape[:2]
    colour = image.mean(axis=(0, 1)).round().tolist()
    margin_y, margin_x = height // 2, width // 2
    padded = cv2.copyMakeBorder(image, margin_y, margin_y, margin_x, margin_x, cv2.BORDER_CONSTANT, value=colour)
    scale = max(1.0, _STILL_SIDE / max(padded.shape[:2]))
    size = round(padded.shape[1] * scale), round(padded.shape[0] * scale)
    large = cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR)
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    face = mesh.find(np.asarray(cv2.cvtColor(large, code), np.uint8))
    if face is None:
        return None
    stretch = np.array([padded.shape[1] / size[0], padded.shape[0] / size[1]], np.float32)
    margin = np.array([margin_x, margin_y], np.float32)
    # Pixels are squares and their centres are counted: the halves take the one to the other and back.
    landmarks = (face.landmarks + np.float32(0.5)) * stretch - np.float32(0.5) - margin
    return type(face)(landmarks, face.blendshapes, face.matrix)
