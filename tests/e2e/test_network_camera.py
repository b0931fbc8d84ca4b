"""A network camera: pictures over HTTP, as cheap cameras send them. Its server is stopped and started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mien.assets import asset_path
from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import AssetsConfig, load_config
from mien.errors import AssetError, SourceError
from mien.messages import FeatureWindow
from mien.stream.inference.assembler import Assembler
from mien.stream.modalities.base import Modality, Rows
from mien.stream.modalities.vision import SPEC, create
from mien.stream.sources.video import open_video
from tests.ports import free_ports
from tests.stream.pictures import UInt8, portrait

PATIENCE_S = 60.0
pytestmark = pytest.mark.e2e


class CameraServer:
    """Serves a portrait with a sensor's noise as multipart JPEG, 20 a second, while it is switched on."""

    def __init__(self, image: UInt8) -> None:
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/video"
        noise = np.random.default_rng(0).normal(0, 3, (8, *image.shape))
        pictures = np.clip(image + noise, 0, 255).astype(np.uint8)
        self._jpegs = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]
        self._server: ThreadingHTTPServer | None = None
        self._on = threading.Event()

    def switch_on(self) -> None:
        jpegs, on = self._jpegs, self._on

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
                self.end_headers()
                number = 0
                try:
                    while on.is_set():
                        jpeg = jpegs[number % len(jpegs)]
                        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                        number += 1
                        time.sleep(0.05)
                except OSError:
                    return

            def log_message(self, *_: Any) -> None:
                pass

        on.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def switch_off(self) -> None:
        self._on.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def server() -> Iterator[CameraServer]:
    server = CameraServer(portrait(320))
    server.switch_on()
    yield server
    server.switch_off()


@pytest.fixture
def landmarker() -> Path:
    try:
        return asset_path("face-landmarker", AssetsConfig(offline=True))
    except AssetError as error:
        pytest.skip(str(error))


class Receiver:
    """What inference would see: the rows in an assembler, with the worker's own explanation of its absence."""

    def __init__(self, modality: Modality, clock: Clock) -> None:
        self.assembler = Assembler({"vision": SPEC})
        self._modality, self._clock = modality, clock
        self._stream = modality.rows()
        self._seq = 0

    def until(self, condition: Callable[[Rows | None], bool], what: str) -> Rows | None:
        deadline = time.monotonic() + PATIENCE_S
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
        return self.assembler.window("test", self._clock.now_ns()).absent

    def _push(self, rows: Rows) -> None:
        message = FeatureWindow(
            session="test", modality="vision", run=1, seq=self._seq, t_start_ns=rows.t_start_ns,
            t_end_ns=rows.t_end_ns, extractor=SPEC.extractor, values=rows.values, valid=rows.valid,
            times_ns=rows.times_ns,
        )  # fmt: skip
        assert self.assembler.push(message, self._clock.now_ns())
        self._seq += 1


@pytest.mark.assets
def test_a_camera_is_lost_and_comes_back(server: CameraServer, landmarker: Path) -> None:  # noqa: ARG001
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


def test_a_camera_that_is_off_at_the_start_is_named(server: CameraServer) -> None:
    server.switch_off()
    with pytest.raises(SourceError, match=f"{server.url} cannot be opened: Connection refused"):
        open_video(load_config(None, {"video.source": server.url}), Clock())
