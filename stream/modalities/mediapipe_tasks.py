"""MediaPipe's face landmarker and detector, without the imports that they do not need.

Loading the package imports matplotlib's pyplot for its drawing helpers: half of a video worker's start-up time, and
memory for as long as it runs. Nothing here draws, so an empty module takes its place during the import.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

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

__all__ = [
    "BaseOptions", "CategoryC", "FaceLandmarkerResultC", "NormalizedLandmarkC", "handle_status", "image_module",
    "load_raw_library", "mp", "vision",
]  # fmt: skip

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

EDGES = np.array(
    [(line.start, line.end) for line in vision.FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION], np.uint16
)
_QUIET = threading.Lock()


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
