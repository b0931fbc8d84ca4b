"""The path of a frame, traced through a real capture worker, bus and inference process, against its drawing."""

from __future__ import annotations

import gc
import re
import threading
import time
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import pytest

import mien
from mien.clock import Clock
from mien.config import load_config
from mien.engines.predictor import Answer, Answers
from mien.engines.rings import Look
from mien.messages import FeatureWindow, Prediction
from mien.stream.bus.subscriber import Subscriber
from mien.stream.capture.process import capture
from mien.stream.inference.loop import infer
from mien.stream.modalities.face_mesh import Face
from mien.stream.processes.control import Assignment, Control
from mien.stream.sources import camera
from mien.stream.sources.source import Frame
from tests.needs import need_asset
from tests.ports import free_ports
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SAMPLE = Path(mien.__file__).parent / "sample.mp4"
PACKAGES = "src", "models", "engines", "stream"
TYPES = "src/mien/messages.py"
MAX_FILES = 12
WARM_UP, STEPS = 3, 6  # steps of each process before files are noted, and while they are
FORMS = Frame, Face, FeatureWindow, Look, Answer, Answers, Prediction
# The first and the last function of a step. Between steps, and in the functions aside, there is work for no frame.
FIRST = {"LiveCamera.read": "capture", "Loop._receive": "inference"}
LAST = {"Publisher.send": "capture", "Loop._predict": "inference"}
ASIDE = {"Loop._carry_out", "Inbox._read_other", "_CaptureProcess.publish_status", "Session.publish_status"}


class FileCamera:
    """A camera that delivers the pictures of the sample."""

    def __init__(self, _index: int, _config: object, clock: Clock) -> None:
        self._file, self._clock = cv2.VideoCapture(str(SAMPLE)), clock

    def read(self) -> Frame:
        time.sleep(0.04)
        ok, image = self._file.read()
        assert ok
        now_ns = self._clock.now_ns()
        return Frame(np.asarray(image, np.uint8), now_ns, now_ns)

    def close(self) -> None:
        self._file.release()


@cache
def own_file(name: str) -> str | None:
    """A file of mien relative to the repository; None for other files."""
    file = Path(name)
    is_own = any(file.is_relative_to(ROOT / package) for package in PACKAGES)
    return file.relative_to(ROOT).as_posix() if is_own else None


def is_frame(value: Any) -> bool:
    """Whether a value is a frame in one of its forms."""
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim == 3
    if isinstance(value, list):  # a message
        return bool(value) and isinstance(value[0], bytes)
    return isinstance(value, FORMS)


class Tracer:
    """Notes the files in which code runs for a frame, and those whose functions take or return the frame."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.path: set[str] = set()
        self.steps = dict.fromkeys(FIRST.values(), 0)
        self._local = threading.local()

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        if event not in ("call", "return") or (file := own_file(frame.f_code.co_filename)) is None:
            return
        name, own = frame.f_code.co_qualname, self._local.__dict__
        if name in ASIDE:
            own["is_aside"] = event == "call"
        if event == "call" and name in FIRST:
            own["noted"] = set()
        if own.get("noted") is None or own.get("is_aside"):
            return
        values = frame.f_locals.values() if event == "call" else (value,)
        own["noted"].add((file, any(map(is_frame, values))))
        if event == "return" and name in LAST:
            if value is not False:
                self._finish(LAST[name], own["noted"])
            own["noted"] = None
        elif event == "return" and name == "LiveCamera.read" and value is None:
            own["noted"] = None

    def _finish(self, process: str, noted: set[tuple[str, bool]]) -> None:
        self.steps[process] += 1
        if self.steps[process] > WARM_UP:
            self.files |= {file for file, _ in noted}
            self.path |= {file for file, takes_frame in noted if takes_frame}


def documented() -> tuple[set[str], set[str]]:
    """The files in the drawing of the path, and those that are listed as helpers."""
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    _, drawing, text = page[page.index("## One frame") :].split("```", 2)
    drawn = {name if name.startswith("engines/") else f"stream/{name}" for name in re.findall(r"[\w/]+\.py", drawing)}
    helpers = text[text.index("Helpers:") :].split("\n\n")[0]
    return drawn, set(re.findall(r"[\w/]+\.py", helpers))


@pytest.mark.assets
def test_frame_passes_the_files_of_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    need_asset("face-landmarker")
    monkeypatch.setattr(camera, "DeviceCamera", FileCamera)
    settings = {"video.source": "0", "audio.source": "none", "text.asr": "none", "inference.engine": "onnx"}
    config = load_config(None, settings | {"bus.port": free_ports()})
    assignment = Assignment(config, Clock().anchor_ns, ("video",))
    worker, inference = (Control(assignment, supervised=False) for _ in range(2))
    inference.supervised = True  # it shares the worker's clock
    for control in (worker, inference):
        control.begin()
    tracer = Tracer()
    threads = [
        threading.Thread(target=capture, args=("video", worker), daemon=True),
        threading.Thread(target=infer, args=(inference,), daemon=True),
    ]
    threading.setprofile(tracer)
    for thread in threads:
        thread.start()
    try:
        with Subscriber(config.bus.address()) as subscriber:
            wait_until(lambda: min(tracer.steps.values()) >= WARM_UP + STEPS, "a prediction")
            assert subscriber.wait(60)
    finally:
        threading.setprofile(None)
        for control in (worker, inference):
            control.stopping.set()
        for thread in threads:
            thread.join()
        gc.unfreeze()  # frozen by both
    drawn, helpers = documented()
    assert tracer.path - {TYPES} == drawn
    assert len(drawn) <= MAX_FILES
    assert tracer.files - tracer.path == helpers
