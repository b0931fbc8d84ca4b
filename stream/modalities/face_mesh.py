"""Face landmarks by MediaPipe's landmarker, and the choice of which face to follow.

The landmarker tracks one face. With more, it would run the detector on every frame (9.5 ms instead of 7.6 ms on one
core of an EPYC) and no longer smooth over time. Its bundled detector costs 1.2 ms; we run it twice a second, after the
frame's landmarks so that no row waits for it, to count the faces and find the largest. If the landmarker follows
another face, the next frames are masked down to the largest one until it has switched.

MediaPipe scales a picture to 128 or 192 pixels a side, where a face of a tenth of the width is a smudge. Its
detector finds faces of 45 pixels in tiles of 300. Tiles are scanned one by one, at a rate that costs at most a
twentieth of a core, and only while no face is followed; a small face is then tracked within its tile.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import AssetError
from mien.messages import Float32, UInt8
from mien.stream.modalities.mediapipe_tasks import (
    Box,
    Face,
    LandmarkReader,
    face_of,
    mp,
    open_detector,
    open_landmarker,
)

Place = tuple[float, float]

LOOK_NS = 500 * NS_PER_MS
LARGER = 1.5  # ratio of areas at which the largest face replaces the followed one
_SAME = 0.2  # intersection over union above which two boxes are the same face
_MAX_WAIT_FRAMES = 5  # frames to wait for the landmarker to find the largest face, or a face in its tile
_GONE_NS = 3 * NS_PER_S  # how long a lost chosen face is waited for, before the largest is followed again
_NEAR = 1.0  # search radius for a lost chosen face, in its widths
PART_NS = 60 * NS_PER_MS  # between two tiles; one costs about 2 ms
SURE = 0.7  # detector score: non-faces had up to 0.66 where faces of 45 pixels had 0.9
_PART = 5 / 12  # side of a tile, as a fraction of the picture's shorter side
_STEP = 0.55  # stride of the tiles, as a fraction of their side
_AROUND = 4.0  # side of the region in which a small face is tracked, in widths of the face
_LEAST = 128  # minimum of that side in pixels
_EDGE = 0.12  # the region is moved when the face is closer to its edge than this fraction of its side
_SIZES = 0.12, 0.5  # width of a face in its region within which the region is kept
_LARGE = 0.3  # face width, as a fraction of the picture's shorter side, from which the whole picture suffices
_TAN = math.tan(math.radians(63.0) / 2)  # MediaPipe's assumed camera: half of its vertical field of view
_UNCLEAR_NS = 2 * NS_PER_S  # how long a face seen without landmarks is reported


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
        """Crop a picture to this part."""
        return picture[self.top : self.bottom, self.left : self.right]

    def whole_box(self, box: Box) -> Box:
        """Convert a box from the part to the whole picture, in pixels."""
        return box[0] + self.left, box[1] + self.top, box[2] + self.left, box[3] + self.top

    def whole_matrix(self, matrix: Float32, width: int, height: int) -> Float32:
        """Convert a head's pose matrix (4, 4) from the part's camera to the whole picture's.

        The landmarker assumes that the part is a full picture with the same field of view: heads seem near and central.
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
    """The region in which to track a face, within a picture of that size."""
    side = min(max(_AROUND * (box[2] - box[0]), _LEAST), width, height)
    left = min(max((box[0] + box[2] - side) / 2, 0), width - side)
    top = min(max((box[1] + box[3] - side) / 2, 0), height - side)
    return Region(int(left), int(top), int(left + side), int(top + side))


def region_for(region: Region, box: Box, width: int, height: int) -> Region | None:
    """The region for tracking a face further: unchanged while it fits, None once the whole picture suffices."""
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
    """Which tile of the picture to scan next."""

    def __init__(self) -> None:
        self._looked_ns: int | None = None
        self._next = 0

    def part(self, width: int, height: int, t_ns: int) -> Region | None:
        """The tile to scan now; None if it is not time yet."""
        if self._looked_ns is not None and 0 <= t_ns - self._looked_ns < PART_NS:
            return None
        self._looked_ns = t_ns
        parts = _parts(width, height)
        self._next = (self._next + 1) % len(parts)
        return parts[self._next]


def _parts(width: int, height: int) -> list[Region]:
    """Overlapping tiles: any small face lies completely within one of them."""
    side = round(min(width, height) * _PART)

    def begins(length: int) -> list[int]:
        count = math.ceil((length - side) / (side * _STEP)) + 1
        return [round(k * (length - side) / max(count - 1, 1)) for k in range(count)]

    return [Region(x, y, x + side, y + side) for y, x in product(begins(height), begins(width))]


class FaceMesh:
    """Finds the face in pictures.

    Args:
        task: MediaPipe's `face_landmarker.task`.
        moving: True for a stream's frames in order, where the face is tracked and smoothed; False for unrelated
            pictures.
        max_faces: how many faces are counted; 1 does not look for others.

    Attributes:
        faces: number in view at the last detection, at most `max_faces`.
        boxes: of the largest of them, at most `max_faces`, from left to right; empty if others are not looked for.

    Raises:
        AssetError: MediaPipe cannot use the file.
    """

    def __init__(self, task: Path, *, moving: bool, max_faces: int = 1) -> None:
        self.faces = 0
        self.boxes: tuple[Box, ...] = ()
        self._moving = moving
        self._max_faces = max_faces
        self._first_ns: int | None = None
        self._last_ms = -1
        self._looked_ns: int | None = None
        self._around: UInt8 | None = None  # the picture in which to look for other faces
        self._followed: Box | None = None
        self._wanted: Box | None = None
        self._wait_frames = 0
        self._place: Place | None = None  # a newly chosen point, not searched yet
        self._chosen: Box | None = None
        self._chosen_ns = 0  # when it was last seen
        self._prefers_largest = False
        self._task = task
        self._search = Search()
        self._region: Region | None = None  # in which a small face is tracked
        self._missed = 0  # frames without it
        self._size = (0, 0)
        self._now_ns = 0
        self._seen_ns: int | None = None  # when the detector saw a face without landmarks
        try:
            self._landmarker: Any = open_landmarker(task, moving=moving)
            self._detector: Any = open_detector(task) if max_faces > 1 else None
        except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise AssetError(f"MediaPipe cannot use the face landmarker {task}: {error}") from error
        self._reader = LandmarkReader(self._landmarker)

    def find(self, rgb: UInt8, t_ns: int = 0) -> Face | None:
        """The face in a picture (H, W, 3) RGB, or None. `t_ns`: its capture time, which must not decrease."""
        if self._first_ns is None:
            self._first_ns = t_ns
        self.look_around()
        self._begin(rgb, t_ns)
        if self._max_faces > 1 and (self._looked_ns is None or t_ns - self._looked_ns >= LOOK_NS):
            self._around = rgb
            if self._looked_ns is None:
                self.look_around()  # no face is followed yet
            self._looked_ns = t_ns
        if self._wanted is not None:
            rgb = _masked(rgb, self._wanted)
        face = self._landmarks(rgb, t_ns)
        if self._moving:
            face = self._followed_closely(rgb, face)
        if face is not None and self._chosen is not None:
            if overlap(face.box, self._chosen) < _SAME:
                face = None  # another face: the chosen one has not been found
            else:
                self._chosen, self._chosen_ns = face.box, t_ns
        self._track(face)
        return face

    def look_around(self) -> None:
        """Run the detector on the last picture, if it is time.

        Otherwise the next `find` does it; calling this after a row was sent keeps the cost out of its latency.
        """
        rgb, self._around = self._around, None
        if rgb is not None:
            self._look(rgb)

    def follow(self, place: Place | None) -> None:
        """Follow the face at a point, x and y as fractions of the picture, until it has been gone for seconds.

        None: the largest, the default.
        """
        self._place, self._chosen, self._prefers_largest = place, None, place is None
        self._chosen_ns, self._looked_ns, self._around = self._now_ns, None, None  # searched in the next frame

    @property
    def is_chosen(self) -> bool:
        """Whether the followed face was chosen by the user."""
        return self._chosen is not None or self._place is not None

    @property
    def is_unclear(self) -> bool:
        """Whether a face is in view, but too small or turned away for landmarks."""
        return self._seen_ns is not None and self._now_ns - self._seen_ns < _UNCLEAR_NS

    def _begin(self, rgb: UInt8, t_ns: int) -> None:
        """Start a frame; if its size has changed, forget all positions."""
        self._now_ns = t_ns
        if rgb.shape[:2] != self._size:
            self._size = rgb.shape[0], rgb.shape[1]
            self._region = self._wanted = self._followed = self._chosen = None

    def _landmarks(self, rgb: UInt8, t_ns: int) -> Face | None:
        """The landmarker's result on a picture, or on the region that holds a small face."""
        region = self._region
        shown = rgb if region is None else region.of(rgb)
        if not self._moving:
            return face_of(self._reader.read(shown, None), shown.shape)
        # Times are relative to the first frame, so that a clip gives the same rows whenever it is played.
        assert self._first_ns is not None
        self._last_ms = max(self._last_ms + 1, (t_ns - self._first_ns) // NS_PER_MS)
        face = face_of(self._reader.read(shown, self._last_ms), shown.shape)
        if face is None or region is None:
            return face
        height, width = self._size
        offset = np.array([region.left, region.top], np.float32)
        return Face(face.landmarks + offset, face.blendshapes, region.whole_matrix(face.matrix, width, height))

    def _followed_closely(self, rgb: UInt8, face: Face | None) -> Face | None:
        """Update the region in which to track a small face; returns the face unchanged."""
        height, width = self._size
        if face is not None:
            self._seen_ns, self._missed = None, 0
            if self._region is not None:
                self._region = region_for(self._region, face.box, width, height)
            return face
        self._missed += 1
        if self._region is not None and self._missed > _MAX_WAIT_FRAMES:
            self._region = None
        if self._region is None and (part := self._search.part(width, height, self._now_ns)) is not None:
            found = self._detected(part.of(rgb), SURE)
            if found:
                self._seen_ns, self._missed = self._now_ns, 0
                self._region = region_around(part.whole_box(max(found, key=_area)), width, height)
        return face

    def _detected(self, rgb: UInt8, least: float = 0.0) -> list[Box]:
        """Boxes of the detected faces with at least this score."""
        if self._detector is None:
            self._detector = open_detector(self._task)
        picture = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(rgb))
        found = (each for each in self._detector.detect(picture).detections if each.categories[0].score >= least)
        boxes = (each.bounding_box for each in found)
        return [(b.origin_x, b.origin_y, b.origin_x + b.width, b.origin_y + b.height) for b in boxes]

    def close(self) -> None:
        """Release the networks. May be called twice."""
        for each in (self._landmarker, self._detector):
            if each is not None:
                each.close()
        self._landmarker = self._detector = None

    def _look(self, rgb: UInt8) -> None:
        """Count the faces, and select the chosen one, or the largest, if another one is followed."""
        boxes = self._detected(rgb)
        self.faces = min(len(boxes), self._max_faces)
        self.boxes = tuple(sorted(sorted(boxes, key=_area)[-self._max_faces :]))
        if boxes and self._followed is None:
            self._seen_ns = self._now_ns
        if self.is_chosen and self._look_for_chosen(boxes):
            return
        largest = max(boxes, key=_area, default=None)
        prefers, self._prefers_largest = self._prefers_largest, False
        if largest is None or (len(boxes) < 2 and not prefers):
            return
        followed = self._followed
        if followed is not None:
            same = max(boxes, key=lambda box: overlap(box, followed))
            least = 1.0 if prefers else LARGER
            if overlap(same, followed) >= _SAME and _area(largest) <= least * _area(same):
                return
        self._switch_to(largest)

    def _look_for_chosen(self, boxes: list[Box]) -> bool:
        """Find the chosen face; False once it has been lost for too long."""
        found: Box | None = None
        if self._place is not None and boxes:
            x, y = self._place[0] * self._size[1], self._place[1] * self._size[0]
            found = min(boxes, key=lambda box: _distance(box, x, y))
            self._place = None
        elif (chosen := self._chosen) is not None and boxes:
            x, y = _centre(chosen)
            best = max(boxes, key=lambda box: overlap(box, chosen))
            if overlap(best, chosen) < _SAME:
                best = min(boxes, key=lambda box: math.dist(_centre(box), (x, y)))
            if math.dist(_centre(best), (x, y)) <= _NEAR * (chosen[2] - chosen[0]):
                found = best
        if found is not None:
            self._chosen, self._chosen_ns = found, self._now_ns
            if self._followed is None or overlap(found, self._followed) < _SAME:
                self._switch_to(found)
        elif self._now_ns - self._chosen_ns >= _GONE_NS:
            self._chosen = self._place = None
            self._prefers_largest = True
        return self.is_chosen

    def _switch_to(self, box: Box) -> None:
        """Mask the landmarker's input down to this face until it has found it."""
        self._wanted, self._wait_frames = box, _MAX_WAIT_FRAMES
        if self._moving and (self._region is not None or self._chosen is not None):
            height, width = self._size
            self._region = region_for(region_around(box, width, height), box, width, height)

    def _track(self, face: Face | None) -> None:
        if face is not None:
            self._followed = face.box
            self.faces = max(self.faces, 1)
        elif self._max_faces == 1:
            self.faces = 0
        if self._wanted is not None:
            self._wait_frames -= 1
            if self._wait_frames == 0 or (face is not None and overlap(face.box, self._wanted) >= _SAME):
                self._wanted = None
        if face is None and self._wanted is None:
            self._followed = None


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 ... 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(one) + _area(other) - shared) if shared else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _centre(box: Box) -> Place:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _distance(box: Box, x: float, y: float) -> float:
    """Distance from a point to a box's centre; a point within the box is closer than any outside of one."""
    inside = box[0] <= x <= box[2] and box[1] <= y <= box[3]
    return math.dist(_centre(box), (x, y)) - (1e6 if inside else 0.0)


def _masked(rgb: UInt8, box: Box) -> UInt8:
    """The picture with everything masked but one face and its close surroundings."""
    margin = 0.6 * (box[2] - box[0])
    left, top = (max(0, round(edge - margin)) for edge in box[:2])
    right, bottom = (max(0, round(edge + margin)) for edge in box[2:])
    shown = np.full_like(rgb, 128)
    shown[top:bottom, left:right] = rgb[top:bottom, left:right]
    return shown
