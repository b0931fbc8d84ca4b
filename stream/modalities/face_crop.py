"""The aligned face crop, the face CNN's input, cut by one function from training images and from live frames.

The crop is level, centred, and scaled to the face, so that head position, roll and distance (which the pose columns
carry) do not look like expressions. The face CNN's weights depend on every constant here: when you change one, raise
`CROP_VERSION`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from mien.messages import Float32, UInt8

if TYPE_CHECKING:
    from mien.stream.modalities.face_mesh import FaceMesh
    from mien.stream.modalities.mediapipe_tasks import Face

CROP_VERSION = "1"
CROP_SIZE = 48
MESH_POINTS = 478
# Corners of the eyes and the mouth in MediaPipe's face mesh, from left to right in the picture.
_CORNERS = np.array([(33, 133), (362, 263), (61, 291)])
_STILL_SIDE = 256  # size in pixels to which a small still is enlarged, including its margin
_FINEST = 64  # maximum samples per pixel and side: a face of 3000 pixels
# Positions of these pairs' midpoints in the crop, in pixels: their medians over FER2013's training faces, whose framing
# is thereby kept.
_TEMPLATE = np.array([(14.7, 18.3), (32.3, 18.3), (23.5, 36.3)])


def aligned_crop(image: UInt8, landmarks: Float32 | None) -> UInt8:
    """Cut the face out of a picture, upright and at a fixed size.

    Args:
        image: (H, W, 3) BGR or (H, W) grey.
        landmarks: (478, 2) face mesh in pixels of `image`, a pixel's centre at its index; None if no face was found:
            then the whole picture is taken as the face, as in datasets of cropped faces.

    Returns:
        (48, 48) grey.
    """
    if landmarks is None:
        whole = cv2.resize(_grey(image), (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)
        return np.asarray(whole, np.uint8)
    forward = _similarity(landmarks[_CORNERS].mean(axis=1).astype(np.float64), _TEMPLATE)
    # A large face is supersampled and averaged: sampling it at 48 x 48 directly would alias.
    finer = max(1, round(1.0 / max(float(np.hypot(forward[0, 0], forward[1, 0])), 1.0 / _FINEST)))
    forward = forward * finer
    forward[:, 2] += (finer - 1) / 2
    side = CROP_SIZE * finer
    fine = cv2.warpAffine(_grey(image), forward, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(fine, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def find_in_still(mesh: FaceMesh, image: UInt8) -> Face | None:
    """The face in a picture that it fills, with landmarks in the picture's own pixels.

    The detector expects some background: padding by half of the picture's size in its mean colour on every side
    finds 95 % of FER2013's faces instead of 84 %.
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
    # Coordinates count pixel centres: the halves convert to pixel edges and back.
    landmarks = (face.landmarks + np.float32(0.5)) * stretch - np.float32(0.5) - margin
    return type(face)(landmarks, face.blendshapes, face.matrix)


def _grey(image: UInt8) -> UInt8:
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def _similarity(source: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The (2, 3) least-squares rotation, scale and shift that takes `source` (n, 2) to `target` (n, 2)."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    # With points as complex numbers, rotation and scale are one complex factor.
    origin = (source - source_mean) @ np.array([1, 1j])
    goal = (target - target_mean) @ np.array([1, 1j])
    # Coincident landmarks have no scale; zero is as good as any.
    factor = np.vdot(origin, goal) / max(float(np.vdot(origin, origin).real), 1e-6)
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, target_mean - turn @ source_mean])
