"""Head pose and position from the face landmarker's matrix."""

from __future__ import annotations

import numpy as np

from mien.messages import Float32

_NEAR_CM = 10.0  # minimum distance of a face from the camera; keeps the pose finite
_SCALE_CM = 50.0  # distance at which the scale is 1


def head_pose(matrix: Float32) -> Float32:
    """Yaw, pitch and roll in radians, and the head's position.

    Args:
        matrix: (4, 4) from the canonical face to the camera, cm; x right, y up, z towards the viewer.

    Returns:
        (6,): yaw (positive: the face turns to the right of the picture), pitch (positive: down) and roll (positive:
        its top tilts to the left of the picture), taken about y, x, z in this order; x and y of the head's direction
        from the optical axis, as tangents; and scale, 1 at half a metre and 2 at half of that.
    """
    yaw = np.arctan2(matrix[0, 2], matrix[2, 2])
    pitch = np.arcsin(min(max(-matrix[1, 2], -1.0), 1.0))
    roll = np.arctan2(matrix[1, 0], matrix[1, 1])
    depth_cm = max(-float(matrix[2, 3]), _NEAR_CM)
    x, y = matrix[0, 3] / depth_cm, matrix[1, 3] / depth_cm
    return np.array([yaw, pitch, roll, x, y, _SCALE_CM / depth_cm], np.float32)
