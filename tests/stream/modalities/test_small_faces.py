"""Faces that are small in the picture: found in tiles, tracked, and located as in the whole."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mien.clock import NS_PER_MS
from mien.messages import UInt8
from mien.stream.modalities.face_mesh import FaceMesh
from mien.stream.modalities.face_search import Region, Search, head_pose, region_around, region_for
from tests.needs import need_asset
from tests.stream.pictures import portrait

WIDTH_IN_PORTRAIT = 89.5  # of the face among 512 pixels


@pytest.fixture
def mesh() -> FaceMesh:
    return FaceMesh(need_asset("face-landmarker"), moving=True, max_faces=2)


def scene(face_px: float, x: int, y: int, width: int = 1280, height: int = 720) -> UInt8:
    """A blurred background with the portrait on it, RGB: a face of that width whose picture begins at (x, y)."""
    noise = np.random.default_rng(0).integers(60, 200, (18, 32, 3), np.uint8)
    picture = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    side = round(512 * face_px / WIDTH_IN_PORTRAIT)
    small = portrait(side)[..., ::-1]
    picture[y : y + side, x : x + side] = small[: height - y, : width - x]
    return np.ascontiguousarray(picture, dtype=np.uint8)


@pytest.mark.assets
@pytest.mark.parametrize(("face_px", "x", "y"), [(45, 900, 300), (45, 30, 400), (64, 500, 40), (128, 300, 0)])
def test_a_small_face_is_found_and_followed(mesh: FaceMesh, face_px: int, x: int, y: int) -> None:
    picture = scene(face_px, x, y)
    found = [mesh.find(picture, k * 60 * NS_PER_MS) for k in range(60)]
    assert all(face is not None for face in found[-20:])
    face = found[-1]
    assert face is not None
    scale = 512 * face_px / WIDTH_IN_PORTRAIT / 512
    assert abs(face.box[0] - x - 180 * scale) < 0.2 * face_px
    assert abs(face.box[1] - y - 71 * scale) < 0.2 * face_px
    assert not mesh.is_unclear
    mesh.close()


@pytest.mark.assets
def test_small_moving_face_is_followed_until_it_leaves(mesh: FaceMesh) -> None:
    t_ns = 0

    def play(pictures: list[UInt8]) -> list[bool]:
        nonlocal t_ns
        seen = []
        for picture in pictures:
            t_ns += 60 * NS_PER_MS
            seen.append(mesh.find(picture, t_ns) is not None)
        return seen

    play([scene(60, 600, 100)] * 50)
    assert sum(play([scene(60, 600 - 6 * k, 100 + 2 * k) for k in range(80)])) > 60
    empty = scene(60, 600, 100)
    empty[:] = 120
    assert not any(play([empty] * 20)[-10:])
    mesh.close()


@pytest.mark.assets
def test_face_too_small_for_landmarks_is_reported(mesh: FaceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.stream.modalities.face_mesh.LandmarkReader.read", lambda *_: None)
    for k in range(40):
        mesh.find(scene(60, 600, 100), k * 60 * NS_PER_MS)
    assert mesh.is_unclear
    mesh.close()


def test_head_position_does_not_depend_on_the_region() -> None:
    width, height = 1280, 720
    whole = np.eye(4, dtype=np.float32)
    whole[:3, 3] = 30.0, -8.0, -200.0
    focal = height / (2 * np.tan(np.radians(31.5)))
    u, v = width / 2 + focal * 30 / 200, height / 2 + focal * 8 / 200
    part = Region(800, 300, 980, 480)
    depth = 200 * 180 / 720
    seen = np.eye(4, dtype=np.float32)
    part_focal = 180 / (2 * np.tan(np.radians(31.5)))
    seen[:3, 3] = (u - 800 - 90) * depth / part_focal, -(v - 300 - 90) * depth / part_focal, -depth
    assert np.allclose(head_pose(part.whole_matrix(seen, width, height)), head_pose(whole), atol=1e-4)


def test_tiles_cover_the_picture_and_are_searched_rarely() -> None:
    search, seen = Search(), np.zeros((720, 1280), bool)
    parts = [search.part(1280, 720, k * 20 * NS_PER_MS) for k in range(300)]
    assert 0 < sum(part is not None for part in parts) <= 100
    for part in parts:
        if part is not None:
            seen[part.top : part.bottom, part.left : part.right] = True
    assert seen.all()


def test_region_follows_its_face_or_falls_back_to_the_picture() -> None:
    region = region_around((600, 300, 660, 380), 1280, 720)
    assert region_for(region, (610, 305, 670, 385), 1280, 720) == region
    moved = region_for(region, (700, 300, 760, 380), 1280, 720)
    assert moved is not None
    assert moved != region
    assert moved.left < 700
    assert moved.right > 760
    assert region_for(region, (500, 100, 800, 500), 1280, 720) is None
    corner = region_around((0, 0, 50, 60), 1280, 720)
    assert (corner.left, corner.top) == (0, 0)
    assert region_for(corner, (0, 0, 50, 60), 1280, 720) == corner
