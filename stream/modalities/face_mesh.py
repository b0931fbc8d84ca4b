"""Face landmarks by MediaPipe's landmarker, and the choice of which face to follow.

The landmarker tracks one face. With more, it would run the detector on every frame (9.5 ms instead of 7.6 ms on one
core of an EPYC) and no longer smooth over time. Its bundled detector costs 1.2 ms; we run it twice a second, after the
frame's landmarks so that no row waits for it, to count the faces and find the largest. If the landmarker follows
another face, the next frames are masked down to the largest one until it has switched.

The landmarker creates an object for each of 478 landmarks and 52 blendshapes, a tenth of a frame's cost.
`LandmarkReader` reads the same numbers from the library's result as arrays. It depends on one release's memory layout,
which is why that release is pinned.
"""

from __future__ import annotations

import ctypes
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import AssetError
from mien.messages import Float32, UInt8
from mien.stream.modalities.face_search import (
    Region,
    Search,
    area_of,
    box_around,
    centre_of,
    distance_to,
    masked,
    overlap,
    region_around,
    region_for,
)
from mien.stream.modalities.mediapipe_tasks import (
    Box,
    CategoryC,
    FaceLandmarkerResultC,
    NormalizedLandmarkC,
    handle_status,
    image_module,
    load_raw_library,
    mp,
    open_detector,
    open_landmarker,
)

_at: Any = ctypes.byref
Place = tuple[float, float]

LOOK_NS = 500 * NS_PER_MS
LARGER = 1.5  # ratio of areas at which the largest face replaces the followed one
_SAME = 0.2  # intersection over union above which two boxes are the same face
_MAX_WAIT_FRAMES = 5  # frames to wait for the landmarker to find the largest face, or a face in its tile
_GONE_NS = 3 * NS_PER_S  # how long a lost chosen face is waited for, before the largest is followed again
_NEAR = 1.0  # search radius for a lost chosen face, in its widths
SURE = 0.7  # detector score: non-faces had up to 0.66 where faces of 45 pixels had 0.9
_UNCLEAR_NS = 2 * NS_PER_S  # how long a face seen without landmarks is reported


@dataclass(frozen=True, eq=False)
class Face:
    """One face.

    Attributes:
        landmarks: (478, 2) float32, pixels; the centre of the first pixel is (0, 0).
        blendshapes: (52,) float32 in 0 ... 1, in MediaPipe's order; the first is "neutral".
        matrix: (4, 4) float32, from the canonical face to the camera: x right, y up, z towards the viewer, cm.
    """

    landmarks: Float32
    blendshapes: Float32
    matrix: Float32

    @cached_property
    def box(self) -> Box:
        """The rectangle around all landmarks."""
        return box_around(self.landmarks)


class LandmarkReader:
    """Calls a landmarker without its conversions.

    Like MediaPipe, it uses a thread of the landmarker's own: called from the thread that continues with a frame, it
    waited longer for a busy processor, because Linux schedules by thread.

    Args:
        landmarker: a `vision.FaceLandmarker` that outputs blendshapes and matrices. The caller closes it.
    """

    def __init__(self, landmarker: Any) -> None:
        self._handle, self._detect = landmarker._handle, landmarker._lib
        self._lib: Any = load_raw_library(image_module._CTYPES_SIGNATURES)

    def read(self, rgb: UInt8, t_ms: int | None) -> Face | None:
        """The first face in a picture (H, W, 3); None if there is none, or if a number is not finite.

        Args:
            t_ms: time of a frame, later than the one before; None for a still, if the landmarker was made for stills.

        Raises:
            RuntimeError, ValueError and others, as MediaPipe: it failed on this picture.
        """
        # Rows must be contiguous: a strided view would be read as noise.
        rgb = np.ascontiguousarray(rgb)
        height, width = rgb.shape[:2]
        picture = ctypes.c_void_p()
        pixels = rgb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        self._call("MpImageCreateFromUint8Data", mp.ImageFormat.SRGB, width, height, pixels, rgb.size, _at(picture))
        try:
            result = FaceLandmarkerResultC()
            if t_ms is None:
                self._detect.MpFaceLandmarkerDetectImage(self._handle, picture, None, _at(result))
            else:
                self._detect.MpFaceLandmarkerDetectForVideo(self._handle, picture, None, t_ms, _at(result))
            try:
                return _face(result, width, height)
            finally:
                self._lib.MpFaceLandmarkerCloseResult(_at(result))
        finally:
            self._lib.MpImageFree(picture)

    def _call(self, name: str, *arguments: Any) -> None:
        error = ctypes.c_char_p()
        status = getattr(self._lib, name)(*arguments, _at(error))
        try:
            handle_status(status, error)
        finally:
            if error.value is not None:
                self._lib.MpErrorFree(error)


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
        self._followed: Face | None = None
        self._requested: Box | None = None
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
        if self._requested is not None:
            rgb = masked(rgb, self._requested)
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
            self._region = self._requested = self._followed = self._chosen = None

    def _landmarks(self, rgb: UInt8, t_ns: int) -> Face | None:
        """The landmarker's result on a picture, or on the region that holds a small face."""
        region = self._region
        shown = rgb if region is None else region.of(rgb)
        if not self._moving:
            return self._reader.read(shown, None)
        # Times are relative to the first frame, so that a clip gives the same rows whenever it is played.
        assert self._first_ns is not None
        self._last_ms = max(self._last_ms + 1, (t_ns - self._first_ns) // NS_PER_MS)
        face = self._reader.read(shown, self._last_ms)
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
                self._region = region_around(part.whole_box(max(found, key=area_of)), width, height)
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
        self.boxes = tuple(sorted(sorted(boxes, key=area_of)[-self._max_faces :]))
        if boxes and self._followed is None:
            self._seen_ns = self._now_ns
        if self.is_chosen and self._look_for_chosen(boxes):
            return
        largest = max(boxes, key=area_of, default=None)
        prefers, self._prefers_largest = self._prefers_largest, False
        if largest is None or (len(boxes) < 2 and not prefers):
            return
        followed = self._followed
        if followed is not None:
            same = max(boxes, key=lambda box: overlap(box, followed.box))
            least = 1.0 if prefers else LARGER
            if overlap(same, followed.box) >= _SAME and area_of(largest) <= least * area_of(same):
                return
        self._switch_to(largest)

    def _look_for_chosen(self, boxes: list[Box]) -> bool:
        """Find the chosen face; False once it has been lost for too long."""
        found: Box | None = None
        if self._place is not None and boxes:
            x, y = self._place[0] * self._size[1], self._place[1] * self._size[0]
            found = min(boxes, key=lambda box: distance_to(box, x, y))
            self._place = None
        elif (chosen := self._chosen) is not None and boxes:
            x, y = centre_of(chosen)
            best = max(boxes, key=lambda box: overlap(box, chosen))
            if overlap(best, chosen) < _SAME:
                best = min(boxes, key=lambda box: math.dist(centre_of(box), (x, y)))
            if math.dist(centre_of(best), (x, y)) <= _NEAR * (chosen[2] - chosen[0]):
                found = best
        if found is not None:
            self._chosen, self._chosen_ns = found, self._now_ns
            if self._followed is None or overlap(found, self._followed.box) < _SAME:
                self._switch_to(found)
        elif self._now_ns - self._chosen_ns >= _GONE_NS:
            self._chosen = self._place = None
            self._prefers_largest = True
        return self.is_chosen

    def _switch_to(self, box: Box) -> None:
        """Mask the landmarker's input down to this face until it has found it."""
        self._requested, self._wait_frames = box, _MAX_WAIT_FRAMES
        if self._moving and (self._region is not None or self._chosen is not None):
            height, width = self._size
            self._region = region_for(region_around(box, width, height), box, width, height)

    def _track(self, face: Face | None) -> None:
        if face is not None:
            self._followed = face  # its box is computed only when needed, after the row was sent
            self.faces = max(self.faces, 1)
        elif self._max_faces == 1:
            self.faces = 0
        if self._requested is not None:
            self._wait_frames -= 1
            if self._wait_frames == 0 or (face is not None and overlap(face.box, self._requested) >= _SAME):
                self._requested = None
        if face is None and self._requested is None:
            self._followed = None


def _face(result: Any, width: int, height: int) -> Face | None:
    """The first face of a result, in copies: its memory belongs to the library."""
    if not result.face_landmarks_count:
        return None
    points, shapes = result.face_landmarks[0], result.face_blendshapes[0]
    matrix = result.facial_transformation_matrixes[0]
    x, score = NormalizedLandmarkC.x.offset, CategoryC.score.offset
    assert NormalizedLandmarkC.y.offset == x + 4
    # Fractions of the picture.
    places = _floats(points.landmarks, (points.landmarks_count, 2), (ctypes.sizeof(NormalizedLandmarkC), 4), x)
    face = Face(
        places * np.array([width, height], np.float32) - np.float32(0.5),
        _floats(shapes.categories, (shapes.categories_count,), (ctypes.sizeof(CategoryC),), score),
        # Column-major.
        _floats(matrix.data, (matrix.rows, matrix.cols), (4, 4 * matrix.rows), 0),
    )
    finite = all(np.isfinite(part).all() for part in (face.landmarks, face.blendshapes, face.matrix))
    return face if finite else None


def _floats(pointer: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Float32:
    size = max((n * stride for n, stride in zip(shape, strides, strict=True)), default=0)
    return np.ndarray(shape, np.float32, ctypes.string_at(pointer, size), offset, strides)
