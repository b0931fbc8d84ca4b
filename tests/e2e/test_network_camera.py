"""A network camera: pictures over HTTP, as cheap cameras send them. Its server is stopped and started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import load_config
from mien.errors import SourceError
from mien.messages import FeatureWindow
from mien.stream.bench.devices import CameraServer
from mien.stream.inference.assembler import Assembler
from mien.stream.modalities.base import Modality
from mien.stream.modalities.vision import SPEC, create
from mien.stream.sources.video import open_video
from tests.needs import need_asset
from tests.stream.pictures import portrait
from tests.windows import window_of

TIMEOUT_S = 60.0
pytestmark = pytest.mark.e2e


@pytest.fixture
def server() -> Iterator[CameraServer]:
    """A camera before a portrait, with a sensor's noise, at 20 pictures a second."""
    image = portrait(320)
    noise = np.random.default_rng(0).normal(0, 3, (8, *image.shape))
    pictures = np.clip(image + noise, 0, 255).astype(np.uint8)
    server = CameraServer([cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures], 0.05)
    server.switch_on()
    yield server
    server.switch_off()


@pytest.fixture
def landmarker() -> Path:
    return need_asset("face-landmarker")


class Receiver:
    """What inference would see: the rows in an assembler, with the worker's own explanation of its absence."""

    def __init__(self, modality: Modality, clock: Clock) -> None:
        self.assembler = Assembler({"vision": SPEC})
        self._modality, self._clock = modality, clock
        self._stream = modality.rows()
        self._seq = 0

    def until(self, condition: Callable[[FeatureWindow | None], bool], what: str) -> FeatureWindow | None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            rows = next(self._stream)
            if rows is not None:
                self._push(rows)
            if condition(rows):
                return rows
            assert time.monotonic() < deadline, f"{what} did not come; {self._modality.health()}"

    def absent(self) -> dict[str, str]:
        """Why vision is masked now, if it is."""
        explanation = self._modality.health().last_error
        self.assembler.explanations = {"vision": explanation} if explanation else {}
        return window_of(self.assembler, self._clock.now_ns()).absent

    def _push(self, rows: FeatureWindow) -> None:
        message = FeatureWindow(
            session="test", modality="vision", run=1, seq=self._seq, t_start_ns=rows.t_start_ns,
            t_end_ns=rows.t_end_ns, extractor=SPEC.extractor, values=rows.values, valid=rows.valid,
            times_ns=rows.times_ns,
        )  # fmt: skip
        assert self.assembler.push(message, self._clock.now_ns())
        self._seq += 1


@pytest.mark.assets
def test_lost_camera_reconnects(server: CameraServer, landmarker: Path) -> None:  # noqa: ARG001
    clock = Clock()
    modality = create(load_config(None, {"video.source": server.url, "assets.offline": True}), clock)
    try:
        modality.prepare()
        began_ns = clock.now_ns()
        modality.start(began_ns)
        receiver = Receiver(modality, clock)
        rows = receiver.until(lambda rows: rows is not None and bool(rows.valid.all()), "a face")
        assert rows is not None
        assert began_ns - NS_PER_S < rows.times_ns[0] <= rows.stamps["read"] <= clock.now_ns()
        assert receiver.absent() == {}
        health = modality.health()
        assert (health.state, health.last_error, health.detail["faces"]) == ("running", None, 1)

        server.switch_off()
        receiver.until(lambda _: modality.health().state == "degraded", "the loss")
        receiver.until(lambda _: bool(receiver.absent()), "the mask")
        assert server.url in receiver.absent()["vision"]

        server.switch_on()
        on_ns = clock.now_ns()
        rows = receiver.until(lambda rows: rows is not None and bool(rows.valid.all()), "the camera")
        assert rows is not None
        assert rows.times_ns[0] >= on_ns - 100 * NS_PER_MS
        # Under three seconds on a machine with time to spare; a busy one must not fail this.
        assert rows.stamps["read"] - on_ns < 15 * NS_PER_S
        health = modality.health()
        assert (health.state, health.last_error, health.detail["reopened"]) == ("running", None, 1)
        receiver.until(lambda _: not receiver.absent(), "the end of the mask")
    finally:
        modality.close()


def test_camera_that_is_off_at_the_start_is_named(server: CameraServer) -> None:
    server.switch_off()
    with pytest.raises(SourceError, match=f"{server.url} cannot be opened: Connection refused"):
        open_video(load_config(None, {"video.source": server.url}), Clock())
