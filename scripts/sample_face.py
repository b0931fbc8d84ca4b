"""The face of the built-in sample: a portrait whose expression is warped frame by frame.

The portrait is `astronaut.png` of scikit-image (NASA, public domain). MediaPipe's landmarks span a triangle mesh over
it; an expression moves the mesh's vertices by smooth displacement fields around mouth corners, lips, jaw, brows and
lids, the head turns by rotating the mesh in depth, and every frame is the portrait mapped through the moved mesh. What
an opening mouth uncovers is painted: the portrait's own upper teeth, and darkness below them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import mediapipe
import numpy as np
import skimage
from mediapipe.tasks.python import BaseOptions, vision
from scipy.spatial import Delaunay

SIZE = 448  # pixels, square
ZOOM = 2.0
LEFT, TOP = 113, 4  # of the crop in the portrait
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
FOLDS = ((129, 203, 206, 216, 57), (358, 423, 426, 436, 432))  # from the nose past the mouth's corners: a smile's
LIDS = {  # upper lid vertices and the lower lid's below them
    "right": ((246, 161, 160, 159, 158, 157, 173), (7, 163, 144, 145, 153, 154, 155)),
    "left": ((466, 388, 387, 386, 385, 384, 398), (249, 390, 373, 374, 380, 381, 382)),
}


@dataclass(frozen=True)
class Expression:
    """What the face does, each about -1 to 1, 0 = at rest. Added and scaled like vectors."""

    smile: float = 0.0  # 1 is the portrait's own smile, negative draws the corners down
    jaw: float = 0.0  # 1 drops the jaw by .32 of the interocular distance
    round: float = 0.0  # lips drawn together
    press: float = 0.0  # lips pressed thin
    brow_inner: float = 0.0  # up
    brow_outer: float = 0.0  # up
    brow_together: float = 0.0
    lid: float = 0.0  # 1 closes the eyes, negative widens them
    squint: float = 0.0  # lower lid up
    yaw: float = 0.0  # degrees
    pitch: float = 0.0  # degrees, positive looks down
    roll: float = 0.0  # degrees
    x: float = 0.0  # pixels
    y: float = 0.0  # pixels

    def blend(self, other: Expression, share: float) -> Expression:
        """`share` of the way to another expression."""
        values, others = np.array(self.values()), np.array(other.values())
        return Expression(*(values + share * (others - values)))

    def plus(self, other: Expression) -> Expression:
        return Expression(*(np.array(self.values()) + np.array(other.values())))

    def values(self) -> tuple[float, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


class Portrait:
    """The portrait and its mesh. `render` gives a frame for an expression."""

    def __init__(self, landmarker: Path) -> None:
        source = cv2.imread(str(Path(skimage.__file__).parent / "data" / "astronaut.png"))
        side = round(SIZE / ZOOM)
        crop = source[TOP : TOP + side, LEFT : LEFT + side]
        large = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_LANCZOS4)
        self._image = cv2.addWeighted(large, 1.2, cv2.GaussianBlur(large, (0, 0), 2.0), -0.2, 0)
        points = self._landmarks(landmarker)
        self._iod = float(np.linalg.norm(points[263, :2] - points[33, :2]))
        self._face, self._depth = points[:, :2], points[:, 2] - points[:, 2].mean()
        centre = self._face[[10, 152]].mean(0)
        oval = cv2.convexHull(self._face.astype(np.float32))[:, 0]
        rings = {scale: centre + (oval - centre) * scale for scale in (1.22, 1.55)}
        edge = np.linspace(0, SIZE - 1, 9)
        border = np.array([(x, y) for x in edge for y in edge if x in edge[[0, -1]] or y in edge[[0, -1]]])
        rings = {scale: ring[(ring > 2).all(1) & (ring < SIZE - 3).all(1)] for scale, ring in rings.items()}
        ringed = np.concatenate(list(rings.values()))
        # Skin and collar around the face follow its rim, the nearer the more.
        self._follow = np.concatenate(
            [np.full(len(ring), 0.55 if scale < 1.5 else 0.15) for scale, ring in rings.items()]
        )
        self._leader = np.linalg.norm(self._face[:, None] - ringed[None], axis=2).argmin(0)
        self._rest = np.concatenate([self._face, ringed, border]).astype(np.float64)
        self._triangles = Delaunay(self._rest).simplices
        grid = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
        self._x, self._y = grid[1], grid[0]
        reach = np.hypot((self._x - centre[0]) / 150, (self._y - centre[1] + 20) / 175)
        neck = np.clip((self._y - self._face[152, 1] - 4) / 50, 0, 1)
        self._nearness = self._nearness_map()
        self._relaxed = self._without_folds()
        self._frown = self._frown_shade()
        self._head = (1 / (1 + np.exp((reach - 1.15) * 9))) * (1 - neck * neck * (3 - 2 * neck))

    def _landmarks(self, landmarker: Path) -> np.ndarray:
        options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(landmarker)))
        with vision.FaceLandmarker.create_from_options(options) as model:
            rgb = np.ascontiguousarray(self._image[..., ::-1])
            found = model.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb)).face_landmarks[0]
        return np.array([(point.x, point.y, point.z) for point in found]) * SIZE

    def _without_folds(self) -> np.ndarray:
        """The portrait without the folds and the bright cheek that its smile makes."""
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for line in FOLDS:
            cv2.polylines(mask, [np.round(self._face[list(line)]).astype(np.int32)], False, 255, 11, cv2.LINE_AA)
        lips = cv2.convexHull(self._face[[61, 40, 37, 0, 267, 270, 291, 405, 17, 181]].astype(np.float32))
        cv2.fillConvexPoly(mask, np.round(lips).astype(np.int32), 0)
        filled = cv2.inpaint(self._image, mask, 3, cv2.INPAINT_TELEA).astype(np.float32)
        hole = (mask > 0)[..., None]
        for _ in range(200):  # a membrane over the hole: no edge of the fold is left
            filled = np.where(hole, cv2.GaussianBlur(filled, (0, 0), 1.5), filled)
        cheeks = sum(self._bump(self._face[[one, two]].mean(0), 0.15) for one, two in ((36, 50), (266, 280)))
        filled *= 1 - 0.07 * cheeks[..., None]
        return np.clip(filled, 0, 255).astype(np.uint8)

    def _frown_shade(self) -> np.ndarray:
        """How much darker lowered brows make the skin: in the sockets under them and in two furrows between them."""
        shade = np.zeros((SIZE, SIZE), np.float32)
        for brow, corner, furrow_x in ((55, 133, -0.055), (285, 362, 0.055)):
            shade += 0.26 * self._bump(self._face[[brow, corner]].mean(0), 0.085)
            shade += 0.24 * self._bump(self._face[9] + (furrow_x * self._iod, 0.07 * self._iod), 0.020, tall=3.2)
        return shade[..., None] * np.array([1.0, 1.0, 0.75], np.float32)  # skin in shade is warm

    def _bump(self, centre: np.ndarray, reach: float, tall: float = 1.0) -> np.ndarray:
        """A Gaussian over the frame, `tall` times as high as wide."""
        distance = np.hypot(self._x - centre[0], (self._y - centre[1]) / tall) / self._iod
        return np.exp(-0.5 * (distance / reach) ** 2)

    def _near(self, index: int, reach: float) -> np.ndarray:
        """A Gaussian around a landmark over the face's vertices; `reach` in interocular distances."""
        distance = np.linalg.norm(self._face - self._face[index], axis=1) / self._iod
        return np.exp(-0.5 * (distance / reach) ** 2)

    def _moved(self, to: Expression) -> np.ndarray:
        """The face's vertices in an expression, shape (478, 2)."""
        face, iod = self._face, self._iod
        move = np.zeros_like(face)
        upper, lower = face[list(UPPER_INNER)], face[list(LOWER_INNER)]
        x, y = face.T
        top, bottom = np.interp(x, *upper.T), np.interp(x, *lower.T)  # of the opening, at each vertex's x
        middle_x, half = (upper[0, 0] + upper[-1, 0]) / 2, (upper[-1, 0] - upper[0, 0]) / 2
        across = (x - middle_x) / half  # -1 and 1 at the corners
        off_lips = np.maximum(top - y, 0) / (0.17 * iod) + np.maximum(y - bottom, 0) / (0.24 * iod)
        near_mouth = np.exp(-0.5 * off_lips**2) * np.exp(-0.5 * (np.maximum(np.abs(across) - 1, 0) / 0.45) ** 2)
        inner = np.sqrt(np.clip(1 - across**2, 0, 1))
        below = np.clip((y - top) / np.maximum(bottom - top, 1), 0, 1)
        # The mouth's line: from the smile's curve over straight to drawn down, and its width.
        fade, droop = 1 - max(to.smile, 0), max(-to.smile, 0)
        curve = np.clip(across, -1.2, 1.2) ** 2
        move[:, 1] += near_mouth * iod * (fade * (0.10 * curve - 0.05) + droop * (0.13 * curve - 0.05))
        move[:, 0] -= (
            near_mouth
            * half
            * np.clip(across, -1.2, 1.2)
            * (0.17 * fade + 0.28 * to.round + (0.16 + 0.24 * fade) * to.jaw - 0.06 * droop)
        )
        for cheek in (205, 425):
            move[:, 1] += self._near(cheek, 0.22) * iod * 0.03 * fade
        # Lips: they close as the smile goes, then the jaw opens them.
        gap = bottom - top
        move[:, 1] += near_mouth * fade * gap * (0.35 - 0.80 * below)
        # A smile stretches the lips thin; without it they are fuller, unless pressed.
        thin = np.exp(-0.5 * (np.abs(across) / 0.7) ** 2) * near_mouth * (off_lips > 0.1)
        move[:, 1] += iod * thin * np.where(below < 0.5, 1, -1) * (0.035 * to.press - 0.024 * fade)
        chin = np.clip((y - lower[:, 1].max()) / (face[152, 1] - lower[:, 1].max()), 0, 1)
        side = np.exp(-0.5 * ((x - middle_x) / (0.46 * iod)) ** 2)
        hang = np.where(y >= bottom, inner * (1 - chin) + side * chin, 0.0)
        hang = np.maximum(hang, below * inner)
        move[:, 1] += hang * to.jaw * 0.30 * iod
        move[:, 1] -= near_mouth * (1 - below) * inner * to.jaw * 0.025 * iod
        # Brows.
        for inner_end, middle, outer_end, inward in ((55, 105, 46, 1.0), (285, 334, 276, -1.0)):
            ends = self._near(inner_end, 0.17), self._near(middle, 0.17), self._near(outer_end, 0.17)
            rise = to.brow_inner, (to.brow_inner + to.brow_outer) / 2, to.brow_outer
            for near, up in zip(ends, rise, strict=True):
                move[:, 1] -= near * up * 0.10 * iod
            move[:, 0] += ends[0] * inward * to.brow_together * 0.07 * iod
        # Lids: the upper comes down to the lower one, and what lies between is squeezed.
        for upper_lid, lower_lid in LIDS.values():
            lid, under = (face[list(line)][np.argsort(face[list(line), 0])] for line in (upper_lid, lower_lid))
            lid_y, under_y = np.interp(x, *lid.T), np.interp(x, *under.T)
            over = (x > lid[0, 0] - 1) & (x < lid[-1, 0] + 1)
            height = np.clip((under_y - y) / np.maximum(under_y - lid_y, 1), 0, 1)
            skin = np.exp(-0.5 * (np.maximum(lid_y - y, 0) / (0.07 * iod)) ** 2) * (y < under_y + 1)
            open_by = np.maximum(under_y - lid_y, 0)
            move[:, 1] += over * skin * open_by * height * to.lid * 1.12
            near_under = np.exp(-0.5 * (np.maximum(y - under_y, 0) / (0.08 * iod)) ** 2) * (1 - height) * (y > lid_y)
            move[:, 1] -= over * near_under * open_by * (0.28 * to.squint - 0.10 * fade)
        moved = face + move
        for above, under_it in zip(UPPER_INNER[1:-1], LOWER_INNER[1:-1], strict=True):
            if moved[above, 1] > moved[under_it, 1] - 0.2:
                meet = (moved[above, 1] + moved[under_it, 1]) / 2
                moved[above, 1], moved[under_it, 1] = meet - 0.1, meet + 0.1
        return moved

    def _mesh_map(self, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every pixel the place in the portrait it comes from."""
        map_x, map_y = self._x.copy(), self._y.copy()
        vertices = self._rest.copy()
        vertices[: len(moved)] = moved
        around = slice(len(moved), len(moved) + len(self._follow))
        vertices[around] += self._follow[:, None] * (moved - self._face)[self._leader]
        changed = (np.abs(vertices - self._rest).max(1) > 1e-3)[self._triangles].any(1)
        for triangle in self._triangles[changed]:
            to, origin = vertices[triangle], self._rest[triangle]
            low, high = np.floor(to.min(0)).astype(int), np.ceil(to.max(0)).astype(int) + 1
            low, high = np.maximum(low, 0), np.minimum(high, SIZE)
            basis = (to[1:] - to[0]).T
            area = np.linalg.det(basis)
            if abs(area) < 1e-6 or (high <= low).any():
                continue
            spot = (slice(low[1], high[1]), slice(low[0], high[0]))
            offset = np.stack([self._x[spot] - to[0, 0], self._y[spot] - to[0, 1]])
            share = np.einsum("ij,jhw->ihw", np.linalg.inv(basis), offset)
            inside = (share[0] >= -1e-6) & (share[1] >= -1e-6) & (share.sum(0) <= 1 + 1e-6)
            back = np.einsum("ij,jhw->ihw", (origin[1:] - origin[0]).T, share)
            map_x[spot][inside] = (back[0] + origin[0, 0])[inside]
            map_y[spot][inside] = (back[1] + origin[0, 1])[inside]
        return map_x, map_y

    def _paint_mouth(self, frame: np.ndarray, moved: np.ndarray, smile: float) -> np.ndarray:
        """Teeth under the upper lip and darkness under the teeth, inside the inner lips."""
        upper, lower = moved[list(UPPER_INNER)], moved[list(LOWER_INNER)]
        polygon = np.concatenate([upper, lower[::-1]])
        mask = np.zeros((SIZE, SIZE), np.uint8)
        cv2.fillPoly(mask, [np.round(polygon * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
        low = np.floor(polygon.min(0)).astype(int) - 4
        high = np.ceil(polygon.max(0)).astype(int) + 5
        spot = (slice(low[1], high[1]), slice(low[0], high[0]))
        x, y = self._x[spot], self._y[spot]
        at_rest = self._face[list(UPPER_INNER)], self._face[list(LOWER_INNER)]
        source_x = np.interp(x, upper[:, 0], at_rest[0][:, 0]).astype(np.float32)
        depth = y - np.interp(x, upper[:, 0], upper[:, 1])
        rest_top = np.interp(source_x, at_rest[0][:, 0], at_rest[0][:, 1])
        rest_gap = np.interp(source_x, at_rest[1][:, 0], at_rest[1][:, 1]) - rest_top
        # A smile lifts the lip off the teeth; without it they are mostly behind it.
        behind = depth + 0.40 * (1 - smile) * rest_gap
        teeth = cv2.remap(self._image, source_x, (rest_top + behind).astype(np.float32), cv2.INTER_CUBIC)
        below_teeth = np.clip((behind - rest_gap * 0.82) / 2.5, 0, 1)[..., None]
        opening = np.interp(x, lower[:, 0], lower[:, 1]) - np.interp(x, upper[:, 0], upper[:, 1])
        gap = np.maximum(opening, 1)
        deep = np.clip(depth / gap, 0, 1)[..., None]
        cavity = np.array([24, 18, 44]) * (1 - deep) + np.array([58, 50, 112]) * deep**1.5
        shade = np.clip(0.55 + depth / 12, 0.55, 1)[..., None]
        inside = teeth * shade * (1 - below_teeth) + cavity * below_teeth
        alpha = cv2.GaussianBlur(mask, (0, 0), 0.9)[spot][..., None].astype(np.float32) / 255
        # Closed lips show nothing between them but a line.
        parted = np.clip((opening - 0.8) / 2, 0, 1)[..., None]
        line = np.zeros((SIZE, SIZE), np.uint8)
        meeting = np.round((upper + lower) / 2 * 16).astype(np.int32)
        cv2.polylines(line, [meeting], False, 255, 2, cv2.LINE_AA, shift=4)
        seam = cv2.GaussianBlur(line, (0, 0), 1.0)[spot][..., None].astype(np.float32) / 255 * (1 - smile)
        inside = inside * parted + np.array([62, 56, 100]) * (1 - parted)
        alpha = alpha * parted + 0.85 * np.clip(1.7 * seam, 0, 1) * (1 - parted)
        painted = frame.copy()
        painted[spot] = np.clip(frame[spot] * (1 - alpha) + inside * alpha, 0, 255).astype(np.uint8)
        return painted

    def _head_map(self, to: Expression) -> tuple[np.ndarray, np.ndarray]:
        """The head's turn as a smooth map: nearer parts of the face move further."""
        yaw, pitch, roll = np.radians([to.yaw, to.pitch, to.roll])
        pivot_x, pivot_y = self._face[152] + (0, 20)
        from_x, from_y = self._x - pivot_x, self._y - pivot_y
        shift_x = to.x + self._nearness * np.sin(yaw) - roll * from_y
        shift_y = to.y + self._nearness * np.sin(pitch) + roll * from_x
        return (
            (self._x - self._head * shift_x).astype(np.float32),
            (self._y - self._head * shift_y).astype(np.float32),
        )

    def _nearness_map(self) -> np.ndarray:
        """Nearness of the face over the frame in pixels, smooth, 0 at the head's rim."""
        nearness = np.zeros((SIZE, SIZE), np.float32)
        weight = np.full((SIZE, SIZE), 1e-3, np.float32)
        for (px, py), z in zip(self._face, self._depth, strict=True):
            near = np.exp(-((self._x - px) ** 2 + (self._y - py) ** 2) / (2 * 14.0**2))
            nearness += near * -z
            weight += near
        return nearness / weight

    def render(self, to: Expression) -> np.ndarray:
        """A frame, shape (448, 448, 3), BGR uint8."""
        moved = self._moved(to)
        smile = float(np.clip(to.smile, 0, 1))
        skin = cv2.addWeighted(self._image, smile, self._relaxed, 1 - smile, 0)
        skin = np.clip(skin * (1 - self._frown * max(0.0, -to.brow_inner)), 0, 255).astype(np.uint8)
        frame = cv2.remap(skin, *self._mesh_map(moved), cv2.INTER_CUBIC)
        frame = self._paint_mouth(frame, moved, smile)
        return cv2.remap(frame, *self._head_map(to), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
