"""Badges and the window, from messages over real sockets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.clock import NS_PER_S
from mien.config import BusConfig
from mien.messages import EMOTIONS, About, FeatureWindow, Float32, Origin, Prediction, Status, WorkerState
from mien.models.voice.columns import VAD
from mien.stream.bus.preview import Preview, encode_preview
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_about, encode_features, encode_prediction, encode_status
from mien.stream.capture.preview import encode_jpeg
from mien.stream.dashboard import collector, view
from mien.stream.dashboard.collector import STALE_S, Collector
from mien.stream.modalities.audio import RATE_HZ, SPEC, AudioExtractor
from mien.stream.sources.source import SAMPLE_RATE
from tests.ports import free_ports
from tests.waiting import wait_until


class SetClock:
    """Replaces the module `time` in the collector: the test controls silence."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Station:
    """Publishes what a session's processes would."""

    def __init__(self, clock: SetClock) -> None:
        self.clock = clock
        self.config = BusConfig(port=free_ports())
        self.inference = Publisher(self.config.endpoint(), self.config)
        self.video = Publisher(self.config.endpoint("video"), self.config)
        self.audio = Publisher(self.config.endpoint("audio"), self.config)
        self.collector = Collector(self.config, None, minutes=1.0)
        self.collector.start()
        self._seq = 0

    def status(self, worker: str, origin: str | None = None, state: WorkerState = "running") -> None:
        detail: dict[str, str | float | int | bool | None] = {"source": "camera 0"}
        if origin is not None:
            detail["origin"] = origin
        message = Status(session="default", worker=worker, run=1, t_ns=NS_PER_S, state=state, pid=1, detail=detail)
        self.inference.send(encode_status(message))

    def about(self, origin: Origin) -> None:
        message = About(
            session="default",
            run=1,
            t_ns=1,
            origin=origin,
            label="",
            model="m/e",
            config={},
            versions={},
            modalities=(),
        )
        self.inference.send(encode_about(message))

    def predict(self, abstains: str | None = None) -> None:
        self._seq += 1
        self.inference.send(
            encode_prediction(
                Prediction(
                    session="default",
                    run=1,
                    seq=self._seq,
                    t_end_ns=self._seq * NS_PER_S // 10,
                    sentiment=None if abstains else 1.5,
                    sentiment_smooth=None if abstains else 1.5,
                    emotions=None if abstains else {name: 0.4 if name == "happy" else 0.1 for name in EMOTIONS},
                    confidence=None if abstains else 0.4,
                    gates={"vision": 0.0 if abstains else 1.0, "audio": 0.0, "text": 0.0},
                    age_ms={"vision": None if abstains else 0.0, "audio": None, "text": None},
                    abstains=abstains,
                )
            )
        )

    def wait(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            with self.collector.lock:
                return condition()

        wait_until(holds, meanwhile=self._service)

    def _service(self) -> None:
        for publisher in (self.inference, self.video, self.audio):
            publisher.service()

    def kinds(self) -> list[str]:
        return [kind for kind, _ in view.badges(self.collector, recording=False)]

    def close(self) -> None:
        self.collector.stop()
        self.inference.close()
        self.video.close()
        self.audio.close()


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    clock = SetClock()
    monkeypatch.setattr(collector, "time", clock)
    station = Station(clock)
    yield station
    station.close()


def test_stale_before_data_and_after_silence(station: Station) -> None:
    assert station.kinds() == ["STALE"]
    station.predict()
    station.wait(lambda: station.kinds() == ["LIVE"])
    station.clock.now_s += STALE_S - 0.01
    assert station.kinds() == ["LIVE"]
    station.clock.now_s += 0.02
    assert station.kinds() == ["STALE"]
    station.predict()
    station.wait(lambda: station.kinds() == ["LIVE"])


@pytest.mark.parametrize(
    ("video", "audio", "kind"),
    [("device", "device", "LIVE"), ("sample", "sample", "SAMPLE"), ("device", "clip", "CLIP"), ("clip", None, "CLIP")],
)
def test_only_devices_are_live(station: Station, video: str, audio: str | None, kind: str) -> None:
    station.about("live")  # as inference that was started alone would say
    station.status("video", video)
    if audio is not None:
        station.status("audio", audio)
    station.wait(lambda: len(station.collector.statuses) == (1 if audio is None else 2))
    station.predict()
    station.wait(lambda: station.kinds() == [kind])


def test_a_replay_of_a_camera_is_a_replay(station: Station) -> None:
    station.about("replay")
    station.status("video", "device")
    station.wait(lambda: station.collector.about is not None and "video" in station.collector.statuses)
    station.predict()
    station.wait(lambda: station.kinds() == ["REPLAY"])


def test_abstaining_and_end_are_shown(station: Station) -> None:
    station.predict("nothing is observed")
    station.wait(lambda: station.kinds() == ["LIVE", "ABSTAINS"])
    station.predict()
    station.wait(lambda: station.kinds() == ["LIVE"])
    station.status("inference", state="ended")
    station.wait(lambda: station.kinds() == ["STALE"])
    station.predict()
    assert [kind for kind, _ in view.badges(station.collector, recording=True)][-1] == "REC"


@pytest.mark.assets
def test_level_and_voice_match_the_rows(station: Station) -> None:
    """A tone of -23 dB, as the real extractor tells of it, and then rows of another extractor, which say nothing."""
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    made = AudioExtractor().push((0.1 * np.sin(2 * np.pi * 440 * t)).astype(np.float32))

    def send(seq: int, values: Float32, extractor: str) -> None:
        begin_ns = seq * NS_PER_S
        times_ns = begin_ns + np.arange(len(values), dtype=np.int64) * (NS_PER_S // RATE_HZ)
        station.audio.send(encode_features(FeatureWindow(
            session="default", modality="audio", run=1, seq=seq, t_start_ns=begin_ns, t_end_ns=begin_ns + NS_PER_S,
            extractor=extractor, values=values, valid=np.ones(len(values), np.bool_), times_ns=times_ns,
        )))  # fmt: skip

    station.wait(lambda: any(topic.startswith(b"features/") for topic in station.audio.subscriptions))
    send(0, made.values[10:40], SPEC.extractor)
    station.wait(lambda: len(station.collector.history.sound) == 6)
    _, level_db, speech, voice = station.collector.history.sound[-1]
    assert level_db == pytest.approx(-23.0, abs=0.2)
    assert speech == pytest.approx(float(made.values[35:40, VAD].max()), abs=0.005)
    assert voice
    shown = len(station.collector.history.sound)
    send(1, np.ones((10, 12), np.float32), "another")
    send(2, made.values[10:15], SPEC.extractor)
    station.wait(lambda: len(station.collector.history.sound) > shown)
    assert len(station.collector.history.sound) == shown + 1


def test_the_window_shows_picture_mesh_and_numbers(station: Station) -> None:
    from mien.stream.dashboard.window import HEIGHT, WIDTH, draw

    with station.collector.lock:
        empty = draw(station.collector)
    assert empty.shape == (HEIGHT, WIDTH, 3)

    def watched() -> bool:
        station.collector.watch(-1, picture=True)
        return b"preview/default/picture" in station.video.subscriptions

    station.status("video", "device")
    station.predict()
    station.wait(watched)
    blue = np.full((48, 64, 3), (200, 40, 40), np.uint8)
    landmarks = np.array([(0.2, 0.2), (0.8, 0.2)], np.float32)
    edges = [b"preview/default/edges", b"\x01", np.array([(0, 1)], "<u2").tobytes()]
    station.video.send(edges)
    sent = Preview(
        session="default",
        run=1,
        seq=0,
        t_ns=NS_PER_S,
        features_seq=0,
        width=64,
        height=48,
        landmarks=landmarks,
        jpeg=encode_jpeg(blue),
    )
    station.video.send(encode_preview(sent, "picture"), keep=False)
    station.wait(lambda: station.collector.preview is not None and bool(station.collector.edges))
    station.predict()
    with station.collector.lock:
        station.collector.watch(-1, picture=True)
        image = draw(station.collector)
    np.testing.assert_allclose(image[300, 240], (200, 40, 40), atol=12)
    mesh, beside = image[72, 240].astype(int), image[60, 240].astype(int)
    assert np.abs(mesh - beside).max() > 20
    assert cv2.absdiff(image[:, 500:], empty[:, 500:]).any()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a screen")
def test_missing_screen_is_a_one_line_error() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    ran = subprocess.run(
        [sys.executable, "-m", "mien", "dashboard", "--window"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 3
    assert "no screen" in ran.stderr.splitlines()[-1]


def test_badges_are_legible() -> None:
    """The contrast of each badge's text is at least 4.5 (WCAG 2 AA), in both themes."""
    sheet = (Path(view.__file__).parent / "static" / "dashboard.css").read_text(encoding="utf-8")
    rules = re.findall(r'^\.m-badge(\[data-kind="\w+"\][^{:]*)\{([^}]*)\}', sheet, re.MULTILINE)
    assert len(rules) >= 6
    roots = re.findall(r"^:root[^{]*\{([^}]*)\}", sheet, re.MULTILINE)
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", root)) for root in roots]
    assert len(themes) == 2
    for theme in themes:
        for kind, rule in rules:
            names = dict(re.findall(r"(?<![-\w])(color|background): var\(--([\w-]+)\)", rule))
            text, ground = luminance(theme[names["color"]]), luminance(theme[names.get("background", "ground")])
            assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, kind


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, by WCAG 2."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
