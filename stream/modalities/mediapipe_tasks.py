"""MediaPipe's face landmarker and detector, without their unneeded imports and conversions.

Loading the package imports matplotlib's pyplot for its drawing helpers: half of a video worker's start-up time, and
memory for as long as it runs. Nothing here draws, so an empty module takes its place during the import.

The landmarker creates an object for each of 478 landmarks and 52 blendshapes, a tenth of a frame's cost.
`LandmarkReader` reads the same numbers from the library's result as arrays. It depends on one release's memory layout,
which is why that release is pinned.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mien.messages import Float32, UInt8

_PLOTS = ("matplotlib", "matplotlib.pyplot")
_stood_in = [] if "matplotlib" in sys.modules else [name for name in _PLOTS if name not in sys.modules]
for _name in _stood_in:
    sys.modules[_name] = ModuleType(_name)
try:
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision
    from mediapipe.tasks.python.components.containers.category_c import CategoryC
    from mediapipe.tasks.python.components.containers.landmark_c import NormalizedLandmarkC
    from mediapipe.tasks.python.core.mediapipe_c_bindings import load_raw_library
    from mediapipe.tasks.python.core.mediapipe_c_utils import handle_status
    from mediapipe.tasks.python.vision.core import image as image_module
    from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarkerResultC
finally:
    for _name in _stood_in:
        del sys.modules[_name]

__all__ = ["BaseOptions", "LandmarkReader", "Landmarks", "mp", "vision"]

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

EDGES = np.array(
    [(line.start, line.end) for line in vision.FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION], np.uint16
)
_QUIET = threading.Lock()


class Landmarks(NamedTuple):
    """The landmarker's output for one face.

    `points` (478, 2): x and y as fractions of the picture. `blendshapes` (52,). `matrix` (4, 4): from the canonical
    face to the camera.
    """

    points: Float32
    blendshapes: Float32
    matrix: Float32


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
        left, top = self.landmarks.min(axis=0)
        right, bottom = self.landmarks.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


def face_of(found: Landmarks | None, shape: tuple[int, ...]) -> Face | None:
    """The face in a picture of that shape; None if there is none, or if a number is not finite."""
    if found is None:
        return None
    landmarks = found.points * np.array([shape[1], shape[0]], np.float32) - np.float32(0.5)
    if not all(np.isfinite(part).all() for part in (landmarks, found.blendshapes, found.matrix)):
        return None
    return Face(landmarks, found.blendshapes, found.matrix)


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

    def read(self, rgb: UInt8, t_ms: int | None) -> Landmarks | None:
        """The first face in a picture (H, W, 3), or None.

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
                return _landmarks(result)
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


_at: Any = ctypes.byref


def _landmarks(result: Any) -> Landmarks | None:
    """The first face of a result, copied: its memory belongs to the library."""
    if not result.face_landmarks_count:
        return None
    points, shapes = result.face_landmarks[0], result.face_blendshapes[0]
    matrix = result.facial_transformation_matrixes[0]
    x, score = NormalizedLandmarkC.x.offset, CategoryC.score.offset
    assert NormalizedLandmarkC.y.offset == x + 4
    return Landmarks(
        _floats(points.landmarks, (points.landmarks_count, 2), (ctypes.sizeof(NormalizedLandmarkC), 4), x),
        _floats(shapes.categories, (shapes.categories_count,), (ctypes.sizeof(CategoryC),), score),
        # Column-major.
        _floats(matrix.data, (matrix.rows, matrix.cols), (4, 4 * matrix.rows), 0),
    )


def _floats(pointer: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Float32:
    size = max((n * stride for n, stride in zip(shape, strides, strict=True)), default=0)
    return np.ndarray(shape, np.float32, ctypes.string_at(pointer, size), offset, strides).copy(order="K")


def open_landmarker(task: Path, *, moving: bool) -> Any:
    """A landmarker for one face, for a stream's frames or for stills. The caller closes it."""
    with _quiet():
        return vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=str(task)),
                running_mode=vision.RunningMode.VIDEO if moving else vision.RunningMode.IMAGE,
                num_faces=1,
                output_face_blendshapes=True,
                output_facial_transformation_matrixes=True,
            )
        )


def open_detector(task: Path) -> Any:
    """The detector from the landmarker's bundle, on its own. The caller closes it."""
    with zipfile.ZipFile(task) as bundle:
        network = bundle.read("face_detector.tflite")
    options = vision.FaceDetectorOptions(
        base_options=BaseOptions(model_asset_buffer=network), running_mode=vision.RunningMode.IMAGE
    )
    with _quiet():
        return vision.FaceDetector.create_from_options(options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress MediaPipe's start-up messages, which no setting turns off."""
    with _QUIET:  # two at once could restore each other's redirection
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
