"""The face: one feature row per frame.

A row is 52 blendshapes, six numbers of head pose, and the face CNN's embedding of the aligned crop. Without a face:
an invalid row of zeros, never a missing row. The same extractor makes training data from files and stills, with the
same numbers for the same frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from mien.assets import asset_path
from mien.assets.manifest import ASSETS
from mien.clock import NS_PER_S, Clock
from mien.config import AssetsConfig, Config
from mien.engines.face import CROP_SIZE, CROP_VERSION, face_network, weights_digest
from mien.engines.selection import open_engine
from mien.errors import SourceError
from mien.messages import FeatureWindow, Float32, ModalitySpec, UInt8
from mien.models.baseline import LONGEST_STEP_S, RunningRest, find_person
from mien.models.weights import SHIPPED, weight_set
from mien.stream.modalities.base import Faces, Modality, Picture
from mien.stream.modalities.face_search import box_around, find_in_still, head_pose
from mien.stream.modalities.resting import Resting, face_rest, face_resting
from mien.stream.modalities.sourced import Detail, Sourced
from mien.stream.processes.plan import source_origin
from mien.stream.sources.source import VideoSource
from mien.stream.sources.video import OpenVideo, open_video

if TYPE_CHECKING:
    from mien.stream.modalities.face_mesh import Face, FaceMesh
    from mien.stream.modalities.mediapipe_tasks import Box

BLENDSHAPES, POSE, EMBEDDING = slice(0, 52), slice(52, 58), slice(58, 122)  # columns
UNCLEAR = "face too small or turned away"
# Corners of the eyes and the mouth in MediaPipe's face mesh, from left to right in the picture.
_LEFT, _RIGHT = np.array([33, 362, 61]), np.array([133, 263, 291])
_FINEST = 64  # maximum samples per pixel and side: a face of 3000 pixels
# Positions of these pairs' midpoints in the crop, in pixels: their medians over FER2013's training faces, whose framing
# is thereby kept.
_TEMPLATE = (14.7 + 18.3j, 32.3 + 18.3j, 23.5 + 36.3j)
_MARGIN = 4  # pixels around the crop: cubic interpolation reads up to two, coordinates are rounded


def vision_spec(weights: Path = SHIPPED.face) -> ModalitySpec:
    """The row format with these face CNN weights."""
    return ModalitySpec(
        name="vision",
        dim=122,
        rate_hz=10,
        steps=50,
        extractor=f"mien-vision-1/landmarker-{ASSETS['face-landmarker'].files[0].sha256[:8]}"
        f"/crop-{CROP_VERSION}/face-{weights_digest(weights)}",
    )


SPEC = vision_spec()


@dataclass(frozen=True, eq=False)
class FaceView:
    """What was seen, besides the row.

    Attributes:
        faces: number of faces in view, up to the counting limit.
        crop: (48, 48) uint8, the face CNN's input; None if there was none.
        logits: (7,) the face CNN's output, in the order of EMOTIONS; None likewise.
        landmarks: (478, 2) pixels; None without a face.
        all_faces: boxes of the faces at the last detection, from left to right, and whether one was chosen; None if
            others are not looked for.
        unclear: there is a face, but too small or turned away for a row.
    """

    faces: int
    crop: UInt8 | None = None
    logits: Float32 | None = None
    landmarks: Float32 | None = None
    all_faces: Faces | None = None
    unclear: bool = False

    @property
    def box(self) -> Box | None:
        """Left, top, right, bottom of the row's face, in pixels; None without one."""
        return None if self.landmarks is None else box_around(self.landmarks)


Row = tuple[Float32, bool, FaceView]


class VisionExtractor:
    """Frames to rows.

    Args:
        assets: where pretrained files are.
        max_faces: how many faces are counted; with 1, no others are looked for, and the first one found counts as the
            largest.
        weights: of the face CNN.
        rest: this person's resting face, subtracted from every row of a stream, (122,), or a running estimate of it;
            None: nothing. Stills are not compared.

    Attributes:
        resting: receives a stream's rows before comparison, to measure a person at rest; None: no measurement.

    Raises:
        AssetError: the face landmarker is not available.
        CheckpointError: the face CNN's weights are missing or unusable.
    """

    def __init__(
        self,
        assets: AssetsConfig | None = None,
        max_faces: int = 2,
        weights: Path = SHIPPED.face,
        rest: Float32 | RunningRest | None = None,
    ) -> None:
        self._task = asset_path("face-landmarker", assets or AssetsConfig())
        self._max_faces, self._rest = max_faces, rest
        self.resting: Resting | None = None
        self._before_ns: int | None = None
        # The same engine everywhere: rows must not depend on what the fusion model runs on.
        self._cnn = open_engine(face_network(weights), "onnx", "fp32", threads=1)
        self._stream: FaceMesh | None = None
        self._stills: FaceMesh | None = None
        self.reset()

    def reset(self) -> None:
        """Start a new stream: no tracking or smoothing across."""
        if self._stream is not None:
            self._stream.close()
        if isinstance(self._rest, RunningRest):
            self._rest.reset()
        self._stream = self._mesh(moving=True, max_faces=self._max_faces)

    def row(self, image_bgr: UInt8, t_ns: int) -> Row:
        """The row of one frame of a stream.

        Args:
            image_bgr: (H, W, 3) uint8.
            t_ns: its capture time, later than the frame before.

        Returns:
            values (122,) float32, finite, zero if not valid; valid; and what was seen.
        """
        assert self._stream is not None, "closed"
        face = self._stream.find(np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB), np.uint8), t_ns)
        others = self._faces_of(self._stream, image_bgr)
        before_ns, self._before_ns = self._before_ns, t_ns
        step_s = 0.0 if before_ns is None else min(max(t_ns - before_ns, 0) / NS_PER_S, LONGEST_STEP_S)
        if face is None:
            if self.resting is not None:
                self.resting.add(np.zeros((1, SPEC.dim), np.float32), [False], step_s)
            unclear = self._stream.is_unclear
            view = FaceView(self._stream.faces, all_faces=others, unclear=unclear)
            return np.zeros(SPEC.dim, np.float32), False, view
        values, valid, view = self._values(face, aligned_crop(image_bgr, face.landmarks), self._stream.faces, others)
        if self.resting is not None:
            self.resting.add(values[None], [valid], step_s)
        if self._rest is not None:
            values = values - (self._rest(values, t_ns) if isinstance(self._rest, RunningRest) else self._rest)
        return values, valid, view

    def look_around(self) -> None:
        """Run the face detector on the last frame, if it is time; otherwise the next `row` does it."""
        assert self._stream is not None, "closed"
        self._stream.look_around()

    def follow(self, place: tuple[float, float] | None) -> None:
        """Follow the face at a point, x and y as fractions of the picture; None: the largest."""
        assert self._stream is not None, "closed"
        self._stream.follow(place)

    def still(self, image: UInt8) -> Row:
        """The row of a picture filled by a face, as in datasets of cropped faces.

        Args:
            image: (H, W) grey or (H, W, 3) BGR, uint8; 48 x 48 is large enough.

        Returns:
            As `row`, except that it is always valid: if no landmarks are found (in FER2013, one in twenty), the whole
            picture is the crop, blendshapes and pose are zero, and `FaceView.faces` is 0.
        """
        if self._stills is None:
            self._stills = self._mesh(moving=False, max_faces=1)
        face = find_in_still(self._stills, image)
        if face is None:
            return self._values(None, aligned_crop(image, None), 0)
        return self._values(face, aligned_crop(image, face.landmarks), 1)

    def close(self) -> None:
        """Release the networks. May be called twice."""
        for mesh in (self._stream, self._stills):
            if mesh is not None:
                mesh.close()
        self._stream = self._stills = None

    def _faces_of(self, mesh: FaceMesh, image: UInt8) -> Faces | None:
        if self._max_faces < 2:
            return None
        height, width = image.shape[:2]
        boxes = tuple((left / width, top / height, right / width, bottom / height)
                      for left, top, right, bottom in mesh.boxes)  # fmt: skip
        return Faces(boxes, "chosen" if mesh.is_chosen else "largest")

    def _mesh(self, *, moving: bool, max_faces: int) -> FaceMesh:
        from mien.stream.modalities.face_mesh import FaceMesh

        return FaceMesh(self._task, moving=moving, max_faces=max_faces)

    def _values(self, face: Face | None, crop: UInt8, faces: int, others: Faces | None = None) -> Row:
        seen = self._cnn.infer({"crop": crop[None, None].astype(np.float32)})
        values = np.zeros(SPEC.dim, np.float32)
        if face is not None:
            values[BLENDSHAPES] = face.blendshapes
            values[POSE] = head_pose(face.matrix)
        values[EMBEDDING] = seen["embedding"][0]
        return values, True, FaceView(faces, crop, seen["logits"][0], face.landmarks if face else None, others)


def aligned_crop(image: UInt8, landmarks: Float32 | None) -> UInt8:
    """Cut the face out of a picture, upright and at a fixed size: the face CNN's input, in training as in use.

    The crop is level, centred, and scaled to the face, so that head position, roll and distance (which the pose columns
    carry) do not look like expressions. The weights depend on every constant here: when you change one, raise
    `CROP_VERSION`.

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
    factor, shift = _similarity([complex(x, y) / 2 for x, y in (landmarks[_LEFT] + landmarks[_RIGHT]).tolist()])
    # A large face is supersampled and averaged: sampling it at 48 x 48 directly would alias.
    finer = max(1, round(1.0 / max(abs(factor), 1.0 / _FINEST)))
    factor, shift = factor * finer, shift * finer + (finer - 1) / 2 * (1 + 1j)
    side = CROP_SIZE * finer
    forward = np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])
    grey = _grey(image, [(each - shift) / factor for each in (0, side, side * 1j, side * (1 + 1j))] if factor else ())
    fine = cv2.warpAffine(grey, forward, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(fine, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def mesh_edges() -> npt.NDArray[np.uint16]:
    """The face mesh's edges: pairs of landmarks, (2556, 2)."""
    from mien.stream.modalities.mediapipe_tasks import EDGES

    return EDGES


def _grey(image: UInt8, corners: Sequence[complex] = ()) -> UInt8:
    """A picture in grey; with corners, only what cubic interpolation between them reads, the rest is undefined."""
    if image.ndim == 2:
        return image
    if not corners:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    height, width = image.shape[:2]
    # Beyond the edge, the outermost pixels are repeated.
    left, right = _span([each.real for each in corners], width)
    top, bottom = _span([each.imag for each in corners], height)
    grey = np.empty((height, width), np.uint8)
    grey[top:bottom, left:right] = cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_BGR2GRAY)
    return grey


def _span(ends: Sequence[float], size: int) -> tuple[int, int]:
    """Indices from the smallest to beyond the largest coordinate, with a margin, and at least one of `size`."""
    return int(min(max(min(ends) - _MARGIN, 0), size - 1)), int(min(max(max(ends) + _MARGIN, 0), size - 1)) + 1


def _similarity(source: Sequence[complex]) -> tuple[complex, complex]:
    """The least-squares rotation and scale (one complex factor), and then shift, from three points to the template."""
    source_mean, target_mean = sum(source) / 3, sum(_TEMPLATE) / 3
    origin = [point - source_mean for point in source]
    goal = [point - target_mean for point in _TEMPLATE]
    product = sum(one.conjugate() * other for one, other in zip(origin, goal, strict=True))
    # Coincident landmarks have no scale; zero is as good as any.
    factor = product / max(sum(point.real**2 + point.imag**2 for point in origin), 1e-6)
    return factor, target_mean - factor * source_mean


class Vision(Sourced[VideoSource]):
    """A camera's or a clip's video, or another source's frames, and its rows. One message per frame."""

    section = "video"

    def __init__(self, config: Config, clock: Clock, open_source: OpenVideo = open_video) -> None:
        super().__init__(config, clock, open_source)
        self._weights = weight_set(config.inference.checkpoint).face
        self.spec = vision_spec(self._weights)
        self._extractor: VisionExtractor | None = None
        self._faces = 0
        self._unclear = False
        self._size: tuple[int, int] | None = None
        self._picture: Picture | None = None
        self._all_faces: Faces | None = None

    def _change(self, config: Config) -> None:
        assert self._extractor is not None, "prepare() comes first"
        opened = open_video(config, self._clock)
        self._source.close()
        self._opened = opened
        self._extractor.reset()
        opened.start(self._start_ns)

    def faces(self) -> Faces | None:
        return self._all_faces

    def follow(self, place: tuple[float, float] | None) -> None:
        if self._config.video.max_faces < 2 or self._extractor is None:
            raise SourceError("only one face is detected (video.max_faces = 1); raise that to choose among several")
        self._extractor.follow(place)
        boxes = self._all_faces.boxes if self._all_faces is not None else ()
        self._all_faces = Faces(boxes, "largest" if place is None else "chosen")

    def measure(self, seconds: float | None) -> None:
        assert self._extractor is not None, "prepare() comes first"
        self._extractor.resting = None if seconds is None else face_resting(seconds, self.spec.extractor)

    @property
    def resting(self) -> Resting | None:
        return self._extractor.resting if self._extractor is not None else None

    def prepare(self) -> None:
        super().prepare()
        person = self._config.person
        rest = face_rest(find_person(person.name), self.spec.extractor, adapt=person.adapt)
        self._extractor = VisionExtractor(self._config.assets, self._config.video.max_faces, self._weights, rest)

    def rows(self) -> Iterator[FeatureWindow | None]:
        extractor = self._extractor
        assert extractor is not None, "prepare() comes first"
        while not (source := self._source).ended:
            frame = source.read(timeout=0.1)
            if frame is None:
                if source.state == "degraded":
                    self._faces = 0
                if not source.ended:
                    yield None
                continue
            if self._chosen and frame.t_ns <= self._sent_ns:
                yield None  # already requested by another source
                continue
            values, valid, view = extractor.row(frame.image, frame.t_ns)
            self._faces, self._unclear = view.faces, view.unclear
            self._size = frame.image.shape[1], frame.image.shape[0]
            self._all_faces = view.all_faces
            self._picture = Picture(frame.image, view.landmarks, mesh_edges, view.all_faces)
            t_start_ns, self._sent_ns = min(self._sent_ns, frame.t_ns), frame.t_ns
            yield FeatureWindow(
                t_start_ns=t_start_ns,
                t_end_ns=frame.t_ns,
                values=values[None],
                valid=np.array([valid]),
                times_ns=np.array([frame.t_ns], np.int64),
                stamps={"read": frame.read_ns},
            )
            extractor.look_around()  # the row is already on its way

    def _detail(self, source: VideoSource) -> Detail:
        width, height = self._size or (None, None)
        return {
            "faces": self._faces,
            "following": self._all_faces.following if self._all_faces is not None else None,
            "unclear": UNCLEAR if self._unclear else None,
            "width": width,
            "height": height,
            "reopened": source.reopened,
            "origin": source_origin(self._config.video.source),
        }

    def picture(self) -> Picture | None:
        return self._picture

    def close(self) -> None:
        self._picture = None
        super().close()
        if self._extractor is not None:
            self._extractor.close()
            self._extractor = None


def create(config: Config, clock: Clock) -> Modality:
    """The vision modality, not yet prepared."""
    return Vision(config, clock)
