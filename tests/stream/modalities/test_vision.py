from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.assets.manifest import ASSETS
from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import AssetsConfig, load_config
from mien.engines.face import face_network
from mien.errors import AssetError, CheckpointError
from mien.messages import FeatureWindow, Float32, UInt8
from mien.models.baseline import EMBEDDING as AT_REST
from mien.models.baseline import FACE_SHARE, ROW, Baseline, Person, Rest, RunningRest, faces_at_rest
from mien.stream.modalities.base import Faces
from mien.stream.modalities.face_mesh import LOOK_NS, FaceMesh, LandmarkReader
from mien.stream.modalities.face_search import find_in_still, head_pose, overlap
from mien.stream.modalities.mediapipe_tasks import BaseOptions, Box, mp, vision
from mien.stream.modalities.resting import face_rest
from mien.stream.modalities.vision import (
    BLENDSHAPES,
    EMBEDDING,
    POSE,
    SPEC,
    FaceView,
    VisionExtractor,
    aligned_crop,
    create,
)
from tests.needs import need_asset
from tests.stream.pictures import beside, head, portrait, write_clip

assets = pytest.mark.assets
YAW, PITCH, ROLL, X, Y, SCALE = range(POSE.start, POSE.stop)
MESH_POINTS = 478


def test_shipped_encoder_has_its_rest_statistics() -> None:
    assert faces_at_rest(SPEC.extractor).shape == (ROW,) == (SPEC.dim,)
    assert EMBEDDING == AT_REST


@pytest.fixture
def task() -> Path:
    return need_asset("face-landmarker")


@pytest.fixture
def extractor(task: Path) -> VisionExtractor:  # noqa: ARG001 - skips without it
    return VisionExtractor(AssetsConfig(offline=True))


@assets
@pytest.mark.parametrize("moving", [True, False])
def test_face_equals_mediapipe(task: Path, moving: bool) -> None:
    mode = vision.RunningMode.VIDEO if moving else vision.RunningMode.IMAGE
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(task)),
        running_mode=mode,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    faces = 0
    with (
        vision.FaceLandmarker.create_from_options(options) as one,
        vision.FaceLandmarker.create_from_options(options) as two,
    ):
        reader = LandmarkReader(two)
        for number, picture in enumerate(
            [portrait(), beside(head(160), head(90)), np.full((64, 90, 3), 128, np.uint8)]
        ):
            rgb = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
            image = mp.Image(image_format=mp.ImageFormat.SRGB, data=rgb)
            theirs = one.detect_for_video(image, 33 * number) if moving else one.detect(image)
            ours = reader.read(rgb, 33 * number if moving else None)
            assert (ours is None) == (not theirs.face_landmarks)
            if ours is None:
                continue
            faces += 1
            points = np.array([(point.x, point.y) for point in theirs.face_landmarks[0]], np.float32)
            assert np.array_equal(ours.landmarks, points * np.array(rgb.shape[1::-1], np.float32) - np.float32(0.5))
            assert ours.blendshapes.tolist() == [shape.score for shape in theirs.face_blendshapes[0]]
            matrix = theirs.facial_transformation_matrixes[0]
            assert np.array_equal(ours.matrix, matrix)
            assert ours.matrix.strides == matrix.strides
        with pytest.raises(ValueError, match="timestamp" if moving else "video"):
            reader.read(rgb, 0)  # a time that has been, or any at all where there are stills
    assert faces


def face_at(corners: list[tuple[float, float]]) -> Float32:
    """Landmarks of which only those that the crop is aligned by are where a face has them."""
    landmarks = np.zeros((MESH_POINTS, 2), np.float32)
    landmarks[[33, 133, 362, 263, 61, 291]] = corners
    return landmarks


def shapes() -> UInt8:
    """A smooth picture of which no part is like another, (200, 200) grey."""
    noise = np.random.default_rng(1).integers(0, 255, (14, 14), np.uint8)
    return np.asarray(cv2.resize(noise, (200, 200), interpolation=cv2.INTER_CUBIC), np.uint8)


FACE = face_at([(70, 80), (90, 80), (110, 80), (130, 80), (85, 120), (115, 120)])


@pytest.mark.parametrize(("angle", "scale"), [(20.0, 1.0), (-35.0, 1.0), (0.0, 2.5), (10.0, 0.6)])
def test_the_crop_does_not_depend_on_where_a_face_is(angle: float, scale: float) -> None:
    image = shapes()
    motion = cv2.getRotationMatrix2D((100.0, 100.0), angle, scale)
    motion[:, 2] += (scale * 100, scale * 60)
    moved = cv2.warpAffine(image, motion, (700, 600), flags=cv2.INTER_CUBIC)
    landmarks = (FACE @ motion[:, :2].T + motion[:, 2]).astype(np.float32)
    still, turned = aligned_crop(image, FACE), aligned_crop(np.asarray(moved, np.uint8), landmarks)
    assert still.shape == turned.shape == (48, 48)
    assert still.dtype == np.uint8
    assert still.std() > 20
    assert np.abs(still.astype(int) - turned).mean() < 4


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 2.0, 4.0])
def test_grey_and_colour_give_one_crop(scale: float) -> None:
    # Each face in another picture, also at and beyond the edges: only the part around it is converted.
    noise = np.random.default_rng(2)
    for x, y in [(0, 0), (100, 90), (199, 150), (-400, 60), (90, 700)]:
        for turn in (1, 1j, np.exp(0.7j), np.exp(-2.5j)):
            grey = noise.integers(0, 255, (150, 200), np.uint8)
            points = scale * turn * ((FACE - 100) @ np.array([1, 1j])) + complex(x, y)
            face = np.stack([points.real, points.imag], 1).astype(np.float32)
            assert np.array_equal(aligned_crop(grey, face), aligned_crop(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), face))


def test_without_landmarks_the_whole_picture_is_the_face() -> None:
    small = np.random.default_rng(0).integers(0, 255, (48, 48), np.uint8)
    assert np.array_equal(aligned_crop(small, None), small)
    large = cv2.resize(small, (480, 480), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(aligned_crop(np.asarray(large, np.uint8), None), small)


def test_landmarks_in_one_point_still_give_a_crop() -> None:
    assert aligned_crop(shapes(), np.full((MESH_POINTS, 2), 50.0, np.float32)).shape == (48, 48)


def test_head_pose_recovers_the_angles() -> None:
    yaw, pitch, roll = 0.5, -0.3, 0.2
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = about_y @ about_x @ about_z
    matrix[:3, 3] = 5.0, -10.0, -25.0
    assert np.allclose(head_pose(matrix), [yaw, pitch, roll, 0.2, -0.4, 2.0], atol=1e-6)
    matrix[:3, 3] = 1.0, 1.0, 0.0
    assert np.isfinite(head_pose(matrix)).all()


def test_overlap_is_intersection_over_union() -> None:
    box: Box = (0.0, 0.0, 2.0, 2.0)
    assert overlap(box, box) == 1.0
    assert overlap(box, (1.0, 0.0, 3.0, 2.0)) == pytest.approx(1 / 3)
    assert overlap(box, (2.0, 2.0, 3.0, 3.0)) == 0.0


def test_extractor_name_covers_all_dependencies() -> None:
    assert SPEC.dim == EMBEDDING.stop == 122
    assert ASSETS["face-landmarker"].files[0].sha256[:8] in SPEC.extractor
    assert face_network().version.split("-")[1] in SPEC.extractor


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"face\.safetensors"):
        face_network(tmp_path / "face.safetensors")


@assets
def test_a_smile_is_a_row(extractor: VisionExtractor) -> None:
    values, valid, view = extractor.row(portrait(), 0)
    assert valid
    assert values.shape == (SPEC.dim,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert (values[BLENDSHAPES] >= 0).all()
    assert (values[BLENDSHAPES] <= 1).all()
    assert values[BLENDSHAPES][[44, 45]].min() > 0.6  # mouthSmileLeft, mouthSmileRight
    assert np.abs(values[[YAW, PITCH, ROLL]]).max() < 0.6
    assert values[X] < 0.0 < values[Y]  # up and a little to the left
    assert np.abs(values[EMBEDDING]).max() <= 1
    assert values[EMBEDDING].std() > 0.1
    assert view.faces == 1
    assert view.logits is not None
    assert view.logits.argmax() == 1  # happy
    assert view.box is not None
    assert overlap(view.box, (180, 70, 270, 180)) > 0.7


@assets
def test_a_mirrored_head_turns_the_other_way(extractor: VisionExtractor) -> None:
    values, _, _ = extractor.row(portrait(), 0)
    extractor.reset()
    mirrored, _, _ = extractor.row(np.ascontiguousarray(portrait()[:, ::-1]), 0)
    assert values[ROLL] == pytest.approx(-mirrored[ROLL], abs=0.04)
    assert values[X] == pytest.approx(-mirrored[X], abs=0.02)
    assert values[PITCH] == pytest.approx(mirrored[PITCH], abs=0.04)
    assert values[SCALE] == pytest.approx(mirrored[SCALE], rel=0.05)


@assets
def test_still_and_live_pictures_give_the_same_crop(extractor: VisionExtractor, task: Path) -> None:
    stills = FaceMesh(task, moving=False)
    photograph = portrait()
    live = extractor.row(photograph, 0)[2].crop
    found = stills.find(np.ascontiguousarray(photograph[..., ::-1]))
    assert found is not None
    assert live is not None
    assert np.array_equal(live, aligned_crop(photograph, found.landmarks))

    # As FER2013 has it: a grey picture of 48 x 48 in which the face fills most.
    small = np.asarray(cv2.resize(photograph[45:205, 145:305], (48, 48), interpolation=cv2.INTER_AREA), np.uint8)
    small = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
    values, valid, view = extractor.still(small)
    face = find_in_still(stills, small)
    assert valid
    assert view.faces == 1
    assert face is not None
    assert view.crop is not None
    assert np.array_equal(view.crop, aligned_crop(small, face.landmarks))
    # And it is the crop of the photograph, but for what 48 pixels cannot hold.
    assert np.corrcoef(view.crop.ravel(), live.ravel())[0, 1] > 0.93
    assert values[BLENDSHAPES][[44, 45]].min() > 0.4


@assets
def test_still_without_landmarks_has_an_embedding(extractor: VisionExtractor) -> None:
    nothing = np.random.default_rng(0).integers(0, 255, (48, 48), np.uint8)
    values, valid, view = extractor.still(nothing)
    assert valid
    assert view.faces == 0
    assert view.crop is not None
    assert np.array_equal(view.crop, nothing)
    assert not values[: POSE.stop].any()
    assert values[EMBEDDING].any()


@assets
def test_no_face_is_a_row_without_evidence(extractor: VisionExtractor) -> None:
    values, valid, view = extractor.row(np.full((480, 640, 3), 90, np.uint8), 0)
    assert not valid
    assert values.shape == (SPEC.dim,)
    assert not values.any()
    assert (view.faces, view.box, view.crop) == (0, None, None)


@assets
def test_strided_view_is_read_correctly(extractor: VisionExtractor) -> None:
    wide = np.zeros((512, 600, 3), np.uint8)
    wide[:, :512] = portrait()
    values, valid, _ = extractor.row(wide[:, :512], 0)
    extractor.reset()
    assert valid
    assert np.array_equal(values, extractor.row(portrait(), 0)[0])


def moving(count: int) -> list[UInt8]:
    """A portrait that wanders and turns."""
    images = []
    for index in range(count):
        motion = cv2.getRotationMatrix2D((225.0, 125.0), 8 * np.sin(index / 4), 1.0)
        motion[:, 2] += (20 * np.sin(index / 6), 10 + index)
        images.append(np.asarray(cv2.warpAffine(portrait(), motion, (512, 512)), np.uint8))
    return images


@assets
def test_rows_depend_on_time_since_the_first_frame_only(extractor: VisionExtractor) -> None:
    def rows(start_ns: int) -> Float32:
        extractor.reset()
        return np.stack([extractor.row(image, start_ns + k * 40 * NS_PER_MS)[0] for k, image in enumerate(moving(8))])

    first = rows(0)
    assert np.abs(np.diff(first, axis=0)).max() > 0
    assert np.array_equal(first, rows(1_763_000_000_123_456_789))


@assets
def test_of_two_faces_the_larger_is_followed_and_both_are_counted(extractor: VisionExtractor) -> None:
    far, near = head(180), head(300)
    for left, right in ((far, near), (near, far)):
        extractor.reset()
        for index in range(4):
            _, valid, view = extractor.row(beside(left, right), index * 40 * NS_PER_MS)
            assert valid
            assert view.faces == 2
            assert view.box is not None
            assert (view.box[0] > 320) == (right is near)


@assets
def test_other_faces_are_searched_after_the_row(extractor: VisionExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str) -> None:
        method = getattr(FaceMesh, name)

        def run(*given: object) -> object:
            done.append(name)
            return method(*given)

        monkeypatch.setattr(FaceMesh, name, run)

    noted("_look")
    noted("_landmarks")
    extractor.reset()
    image = head(240)
    for t_ns in (0, LOOK_NS, LOOK_NS + 40 * NS_PER_MS, 2 * LOOK_NS):
        extractor.row(image, t_ns)
    assert done == ["_look", "_landmarks", "_landmarks", "_look", "_landmarks", "_landmarks"]
    for _ in range(2):
        extractor.look_around()
    assert done[6:] == ["_look"]


@assets
def test_a_face_is_followed_until_another_is_clearly_larger(extractor: VisionExtractor) -> None:
    t_ns = 0

    def play(left: int, right: int, seconds: float) -> list[bool]:
        """Whether the right one was followed, for each frame with a row."""
        nonlocal t_ns
        followed = []
        for _ in range(round(seconds * 25)):
            t_ns += 40 * NS_PER_MS
            _, valid, view = extractor.row(beside(head(left), head(right)), t_ns)
            if valid and view.box is not None:
                followed.append(view.box[0] > 320)
        return followed

    assert not any(play(240, 200, 0.4))
    assert not any(play(240, 260, 1.0))  # a little larger is no reason to change
    changed = play(180, 300, 1.2)
    assert changed[-1]
    assert len(changed) >= 25  # at most a few frames are lost on the way
    assert all(play(180, 300, 0.8))


@assets
def test_a_damaged_landmarker_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "face_landmarker.task"
    damaged.write_bytes(b"not a task")
    with pytest.raises(AssetError, match=r"face_landmarker\.task"):
        FaceMesh(damaged, moving=True)


@assets
def test_modality_on_a_clip_equals_the_extractor(
    extractor: VisionExtractor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = [*moving(10), *[np.full((512, 512, 3), 60, np.uint8)] * 5]
    clip = write_clip(tmp_path / "clip.mp4", images)
    start_ns = 1_763_000_000 * NS_PER_S

    def play() -> list[FeatureWindow]:
        config = load_config(None, {"video.source": str(clip), "clip.fast": True, "assets.offline": True})
        modality = create(config, Clock())
        assert modality.health().state == "starting"
        modality.prepare()
        modality.start(start_ns)
        made = [rows for rows in modality.rows() if rows is not None]
        health = modality.health()
        assert (health.state, health.drops, health.last_error) == ("ended", {}, None)
        assert health.detail["source"] == "clip.mp4"
        modality.close()
        modality.close()
        return made

    first, second = play(), play()
    assert capfd.readouterr().err == ""
    assert len(first) == len(images)
    assert [rows.t_end_ns for rows in first] == [start_ns + k * 40 * NS_PER_MS for k in range(len(images))]
    assert all(rows.t_start_ns <= rows.times_ns[0] == rows.t_end_ns for rows in first)
    assert all("read" in rows.stamps for rows in first)
    valid = np.concatenate([rows.valid for rows in first])
    assert valid[:10].all()
    assert not valid[-3:].any()
    assert np.array_equal(np.stack([r.values for r in first]), np.stack([r.values for r in second]))

    import av

    extractor.reset()
    with av.open(str(clip)) as container:
        for rows, frame in zip(first, container.decode(video=0), strict=True):
            image = np.ascontiguousarray(frame.to_ndarray(format="bgr24"))
            assert np.array_equal(extractor.row(image, int(frame.time * NS_PER_S))[0], rows.values[0])


@assets
def test_chosen_face_is_followed_until_it_leaves(extractor: VisionExtractor) -> None:
    """Not the larger one next to it, even while both move; no other in its absence; after seconds the largest."""

    t_ns = 0
    seen: list[FaceView] = []

    def play(pictures: list[UInt8], seconds: float) -> list[bool | None]:
        """Whether the right one was followed, for each frame; None for one without a row."""
        nonlocal t_ns
        followed: list[bool | None] = []
        for index in range(round(seconds * 25)):
            t_ns += 40 * NS_PER_MS
            _, valid, view = extractor.row(pictures[index % len(pictures)], t_ns)
            followed.append(view.box[0] > 320 if valid and view.box is not None else None)
            seen.append(view)
        return followed

    def faces() -> Faces:
        assert seen[-1].all_faces is not None
        return seen[-1].all_faces

    both = beside(head(180), head(300))
    assert play([both], 0.4)[-1] is True
    assert len(faces().boxes) == 2
    assert faces().following == "largest"
    left = faces().boxes[0]
    assert left[2] < 0.5

    extractor.follow(((left[0] + left[2]) / 2, (left[1] + left[3]) / 2))
    chosen = play([both], 1.2)
    assert chosen[-1] is False
    assert chosen.count(None) <= 5
    swaying = [np.roll(both, 4 * step, axis=1) for step in (*range(8), *range(8, 0, -1))]
    assert set(play(swaying, 2.0)) == {False}
    assert faces().following == "chosen"

    alone = beside(np.full((180, 180, 3), 128, np.uint8), head(300))
    assert set(play([alone], 1.5)[10:]) == {None}, "now it is another face"
    assert play([both], 1.2)[-1] is False, "it came back"
    assert play([alone], 5.0)[-1] is True
    assert faces().following == "largest"

    extractor.follow((0.25, 0.5))
    assert play([both], 1.2)[-1] is False
    extractor.follow(None)
    assert play([both], 1.2)[-1] is True


@assets
def test_baseline_applies_to_streams_not_stills(extractor: VisionExtractor) -> None:
    picture = portrait()
    raw, valid, _ = extractor.row(picture, 0)
    assert valid
    person = Person("ada", Baseline(1, "", Rest(SPEC.extractor, 15.0, raw.tolist())))
    rest = face_rest(person, SPEC.extractor)
    assert isinstance(rest, np.ndarray)
    compared = VisionExtractor(AssetsConfig(offline=True), rest=rest)
    row, valid, _ = compared.row(picture, 0)
    assert valid
    general = faces_at_rest(SPEC.extractor)
    halfway = raw - np.float32(FACE_SHARE) * (raw - general)
    np.testing.assert_allclose(row[EMBEDDING], halfway[EMBEDDING], atol=1e-5)
    assert np.array_equal(row[: EMBEDDING.start], raw[: EMBEDDING.start])
    nobody, valid, _ = compared.row(np.zeros_like(picture), NS_PER_S)
    assert not valid
    assert not nobody.any()
    assert np.array_equal(compared.still(picture)[0], extractor.still(picture)[0])
    compared.close()


def test_running_baseline_is_opt_in() -> None:
    known = Person("ada", Baseline(1, "", Rest(SPEC.extractor, 15.0, [0.0] * SPEC.dim)))
    assert face_rest(None, SPEC.extractor) is None
    assert isinstance(face_rest(None, SPEC.extractor, adapt=True), RunningRest)
    assert isinstance(face_rest(Person("bob", Baseline(1, "")), SPEC.extractor, adapt=True), RunningRest)
    assert isinstance(face_rest(known, SPEC.extractor, adapt=True), np.ndarray)
