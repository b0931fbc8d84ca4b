"""The face in a picture: MediaPipe's landmarker, and which of several faces it follows.

The landmarker is asked for one face. Asked for more, it would look for the others in every frame (on one core of an
EPYC, 9.5 ms instead of 7.6 ms) and no longer smooth over time. The detector that comes with it costs 1.2 ms; a look
around with it twice a second counts the faces and finds the largest. Where the landmarker follows another one, it is
shown only the largest until it has it. Faces that are too small for the picture as a whole are found and followed in a
part of it (see `face_search`).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import AssetError
from mien.messages import Float32, UInt8
from mien.stream.modalities.face_search import SURE, Box, Region, Search, region_around, region_for
from mien.stream.modalities.mediapipe_tasks import BaseOptions, LandmarkReader, Landmarks, mp, vision

Place = tuple[float, float]

BLENDSHAPES = 52
EDGES = np.array(
    [(line.start, line.end) for line in vision.FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION], np.uint16
)
LOOK_NS = 500 * NS_PER_MS
LARGER = 1.5  # times the area of the face that is followed: then the largest is followed instead
_SAME = 0.2  # intersection over union of two boxes that are one face
_PATIENCE = 5  # frames in which only the largest face is shown, or a face is waited for in its part
_GONE_NS = 3 * NS_PER_S  # for which a chosen face is waited for, before the largest is followed again
_NEAR = 1.0  # widths of the chosen face within which it is looked for again
_UNCLEAR_NS = 2 * NS_PER_S  # for which a face that was seen without landmarks is spoken of
_QUIET = threading.Lock()


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

    @property
    def box(self) -> Box:
        """The rectangle around all landmarks."""
        left, top = self.landmarks.min(axis=0)
        right, bottom = self.landmarks.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


class FaceMesh:
    """Finds the face in pictures.

    Args:
        task: MediaPipe's `face_landmarker.task`.
        moving: True for the frames of one stream in order of time, where the face is tracked and smoothed; False for
            pictures that have nothing to do with each other.
        max_faces: how far faces are counted; 1 does not look for others.

    Attributes:
        faces: how many were in view at the last look, at most `max_faces`.
        boxes: of the largest of them, at most `max_faces`, from left to right; empty where only one is looked for.

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
        self._followed: Box | None = None
        self._wanted: Box | None = None
        self._patience = 0
        self._place: Place | None = None  # where a face was chosen that has not been looked for yet
        self._chosen: Box | None = None
        self._chosen_ns = 0  # when it was seen last
        self._prefers_largest = False
        self._task = task
        self._search = Search()
        self._region: Region | None = None  # in which a small face is followed
        self._missed = 0  # frames without it
        self._size = (0, 0)
        self._now_ns = 0
        self._seen_ns: int | None = None  # when the detector saw a face of which there are no landmarks
        mode = vision.RunningMode.VIDEO if moving else vision.RunningMode.IMAGE
        try:
            with _quiet():
                self._landmarker: Any = vision.FaceLandmarker.create_from_options(
                    vision.FaceLandmarkerOptions(
                        base_options=BaseOptions(model_asset_path=str(task)),
                        running_mode=mode,
                        num_faces=1,
                        output_face_blendshapes=True,
                        output_facial_transformation_matrixes=True,
                    )
                )
                self._detector: Any = _detector(task) if max_faces > 1 else None
        except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise AssetError(f"MediaPipe cannot use the face landmarker {task}: {error}") from error
        self._reader = LandmarkReader(self._landmarker)

    def find(self, rgb: UInt8, t_ns: int = 0) -> Face | None:
        """The face in a picture (H, W, 3) RGB, or None. `t_ns`: its capture time, which must not fall."""
        if self._first_ns is None:
            self._first_ns = t_ns
        self._begin(rgb, t_ns)
        if self._max_faces > 1 and (self._looked_ns is None or t_ns - self._looked_ns >= LOOK_NS):
            self._looked_ns = t_ns
            self._look(rgb)
        if self._wanted is not None:
            rgb = _only(rgb, self._wanted)
        face = self._landmarks(rgb, t_ns)
        if self._moving:
            face = self._followed_closely(rgb, face)
        if face is not None and self._chosen is not None:
            if overlap(face.box, self._chosen) < _SAME:
                face = None  # somebody else: nothing is known of the one who was chosen
            else:
                self._chosen, self._chosen_ns = face.box, t_ns
        self._track(face)
        return face

    def follow(self, place: Place | None) -> None:
        """Follow the face at a place, x and y as fractions of the picture, until it is gone for seconds.

        None: the largest, as before anything was chosen.
        """
        self._place, self._chosen, self._prefers_largest = place, None, place is None
        self._chosen_ns, self._looked_ns = self._now_ns, None  # looked for in the next frame

    @property
    def is_chosen(self) -> bool:
        """Whether a face is followed because it was chosen."""
        return self._chosen is not None or self._place is not None

    @property
    def is_unclear(self) -> bool:
        """Whether there is a face in view, but too small or turned away for landmarks."""
        return self._seen_ns is not None and self._now_ns - self._seen_ns < _UNCLEAR_NS

    def _begin(self, rgb: UInt8, t_ns: int) -> None:
        """A frame has come; of another size than the last, nothing that is known of places holds."""
        self._now_ns = t_ns
        if rgb.shape[:2] != self._size:
            self._size = rgb.shape[0], rgb.shape[1]
            self._region = self._wanted = self._followed = self._chosen = None

    def _landmarks(self, rgb: UInt8, t_ns: int) -> Face | None:
        """What the landmarker makes of a picture, or of the part of it that holds a small face."""
        region = self._region
        shown = rgb if region is None else region.of(rgb)
        if not self._moving:
            return _face(self._reader.read(shown, None), shown.shape)
        # Times are counted from the first frame, so that a clip gives the same rows whenever it is played.
        assert self._first_ns is not None
        self._last_ms = max(self._last_ms + 1, (t_ns - self._first_ns) // NS_PER_MS)
        face = _face(self._reader.read(shown, self._last_ms), shown.shape)
        if face is None or region is None:
            return face
        height, width = self._size
        offset = np.array([region.left, region.top], np.float32)
        return Face(face.landmarks + offset, face.blendshapes, region.whole_matrix(face.matrix, width, height))

    def _followed_closely(self, rgb: UInt8, face: Face | None) -> Face | None:
        """Where to look for a small face in the next frame; the face as it is."""
        height, width = self._size
        if face is not None:
            self._seen_ns, self._missed = None, 0
            if self._region is not None:
                self._region = region_for(self._region, face.box, width, height)
            return face
        self._missed += 1
        if self._region is not None and self._missed > _PATIENCE:
            self._region = None
        if self._region is None and (part := self._search.part(width, height, self._now_ns)) is not None:
            found = self._detected(part.of(rgb), SURE)
            if found:
                self._seen_ns, self._missed = self._now_ns, 0
                self._region = region_around(part.whole_box(max(found, key=_area)), width, height)
        return face

    def _detected(self, rgb: UInt8, least: float = 0.0) -> list[Box]:
        """Boxes of the faces that the detector sees with at least such a score."""
        if self._detector is None:
            with _quiet():
                self._detector = _detector(self._task)
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
        """Count the faces, and want the one that was chosen, or the largest, if another one is followed."""
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
        self._want(largest)

    def _look_for_chosen(self, boxes: list[Box]) -> bool:
        """Find the face that was chosen; False once it is gone for so long that it is given up."""
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
                self._want(found)
        elif self._now_ns - self._chosen_ns >= _GONE_NS:
            self._chosen = self._place = None
            self._prefers_largest = True
        return self.is_chosen

    def _want(self, box: Box) -> None:
        """Show the landmarker this face alone until it has it."""
        self._wanted, self._patience = box, _PATIENCE
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
            self._patience -= 1
            if self._patience == 0 or (face is not None and overlap(face.box, self._wanted) >= _SAME):
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
    """From a point to a box's centre; within the box, all are nearer than any outside of one."""
    inside = box[0] <= x <= box[2] and box[1] <= y <= box[3]
    return math.dist(_centre(box), (x, y)) - (1e6 if inside else 0.0)


def _only(rgb: UInt8, box: Box) -> UInt8:
    """The picture with nothing but one face and what is close around it."""
    margin = 0.6 * (box[2] - box[0])
    left, top = (max(0, round(edge - margin)) for edge in box[:2])
    right, bottom = (max(0, round(edge + margin)) for edge in box[2:])
    shown = np.full_like(rgb, 128)
    shown[top:bottom, left:right] = rgb[top:bottom, left:right]
    return shown


def _face(found: Landmarks | None, shape: tuple[int, ...]) -> Face | None:
    if found is None:
        return None
    landmarks = found.points * np.array([shape[1], shape[0]], np.float32) - np.float32(0.5)
    if not all(np.isfinite(part).all() for part in (landmarks, found.blendshapes, found.matrix)):
        return None
    return Face(landmarks, found.blendshapes, found.matrix)


def _detector(task: Path) -> Any:
    """The detector that the landmarker's bundle carries, for itself."""
    with zipfile.ZipFile(task) as bundle:
        network = bundle.read("face_detector.tflite")
    return vision.FaceDetector.create_from_options(
        vision.FaceDetectorOptions(
            base_options=BaseOptions(model_asset_buffer=network), running_mode=vision.RunningMode.IMAGE
        )
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MediaPipe's start-up messages, which no setting turns off, from the terminal."""
    with _QUIET:  # two at once could restore each other's silence
        try:
            saved = os.dup(2)
        except OSError:  # standard error is closed, as in a service
            yield
            return
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
