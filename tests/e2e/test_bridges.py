"""Bridges against real counterparts: Chromium, an OSC receiver, an LSL inlet in another process, a Mosquitto broker."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mien.clock import Clock
from mien.config import BusConfig
from mien.messages import EMOTIONS, Prediction, Status, Transcript, Word
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_prediction, encode_status
from tests.e2e.conftest import command
from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

SESSION = "stage"
EXAMPLES = Path(__file__).parents[2] / "examples"


class Station(threading.Thread):
    """Publishes predictions of one session or several, fifty a second, as inference does."""

    def __init__(self, *sessions: str) -> None:
        super().__init__(daemon=True)
        self.sessions = sessions or (SESSION,)
        self.port = free_ports()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.clock = Clock()
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        publisher = Publisher(self.endpoint, BusConfig())
        publisher.on_clock_request = lambda question: answer_question(question, 7, self.clock)
        seq = 0
        try:
            while not self._ending.is_set():
                for session in self.sessions:
                    publisher.send(encode_prediction(replace(self.prediction(seq), session=session)))
                    if seq % 50 == 0:
                        publisher.send(encode_status(replace(self.status(), session=session)))
                seq += 1
                deadline_s = time.monotonic() + 0.02
                while time.monotonic() < deadline_s:
                    publisher.service()
                    time.sleep(0.002)
        finally:
            publisher.close()

    def prediction(self, seq: int) -> Prediction:
        now_ns = self.clock.now_ns()
        emotions = {name: 0.4 if name == "happy" else 0.1 for name in EMOTIONS}
        word = Word("hello", now_ns - 10**9, now_ns - 5 * 10**8)
        return Prediction(
            session=SESSION, run=7, seq=seq, t_end_ns=now_ns, sentiment=1.25, sentiment_smooth=1.0, emotions=emotions,
            confidence=0.4, gates={"vision": 0.5, "audio": 0.5, "text": 0.0},
            age_ms={"vision": 10.0, "audio": 20.0, "text": None}, transcript=Transcript("hello", "there"),
            words=(word,), model="cmmsf-0/test",
        )  # fmt: skip

    def status(self) -> Status:
        return Status(session=SESSION, worker="inference", run=7, t_ns=self.clock.now_ns(), state="running", pid=1)

    def close(self) -> None:
        self._ending.set()
        self.join(5)


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    made = Station()
    yield made
    made.close()


@contextmanager
def bridge(kind: str, station: Station, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`mien bridge`, ended by SIGTERM as a service manager does; it has to end cleanly."""
    process = subprocess.Popen(
        command("bridge", kind, station.endpoint, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        _, received = process.communicate(timeout=30)
        assert process.returncode == 0, received
        assert "Traceback" not in received


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def web_port(station: Station) -> Iterator[int]:
    """The port of a running `mien bridge ws`."""
    pytest.importorskip("starlette")
    from websockets.sync.client import connect

    port = free_ports(1)
    with bridge("ws", station, "--port", str(port), "--origin", "null"):
        wait_until(lambda: is_open(port))
        with connect(f"ws://127.0.0.1:{port}/ws") as client:
            wait_until(lambda: json.loads(client.recv(10))["type"] == "status")
        yield port


@pytest.fixture
def two_sessions() -> Iterator[Station]:
    made = Station("one", "two")
    yield made
    made.close()


class TestWeb:
    def test_a_client_gets_predictions_and_statuses(self, web_port: int) -> None:
        from websockets.sync.client import connect
        from websockets.typing import Origin

        with connect(f"ws://127.0.0.1:{web_port}/ws", origin=Origin(f"http://127.0.0.1:{web_port}")) as client:
            events = [json.loads(client.recv(10)) for _ in range(30)]
        predictions = [event for event in events if event["type"] == "prediction"]
        numbers = [prediction["seq"] for prediction in predictions]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert predictions[0]["top_emotion"] == "happy"
        assert predictions[0]["transcript"] == {"committed": "hello", "tentative": "there", "uncertain": ""}

    def test_a_late_client_gets_the_newest_status_first(self, web_port: int) -> None:
        from websockets.sync.client import connect

        with connect(f"ws://127.0.0.1:{web_port}/ws") as late:
            event = json.loads(late.recv(10))
        assert (event["type"], event["worker"], event["state"]) == ("status", "inference", "running")

    @pytest.mark.long
    def test_filters_apply_per_client(self, web_port: int) -> None:
        from websockets.sync.client import connect

        origin: Any = f"http://127.0.0.1:{web_port}"
        with (
            connect(f"ws://127.0.0.1:{web_port}/ws?fields=sentiment,top_emotion&rate_hz=5", origin=origin) as few,
            connect(f"ws://127.0.0.1:{web_port}/ws", origin=origin) as all_of_them,
        ):
            assert json.loads(few.recv(10))["type"] == "status", "what was known before comes first"
            received = json.loads(few.recv(10))
            assert received == {"type": "prediction", "sentiment": 1.25, "top_emotion": "happy"}
            began_s = time.monotonic()
            for _ in range(5):
                few.recv(10)
            assert time.monotonic() - began_s > 0.75  # five at five a second
            assert json.loads(all_of_them.recv(10))["type"] == "status"
            assert json.loads(all_of_them.recv(10))["model"] == "cmmsf-0/test"

    def test_other_sessions_are_filtered_and_invalid_filters_rejected(self, web_port: int) -> None:
        from websockets.exceptions import ConnectionClosedError
        from websockets.sync.client import connect

        origin: Any = f"http://127.0.0.1:{web_port}"
        address = f"ws://127.0.0.1:{web_port}/ws"
        with connect(f"{address}?session=other", origin=origin) as client, pytest.raises(TimeoutError):
            client.recv(0.5)
        with (
            connect(f"{address}?fields=moods", origin=origin) as client,
            pytest.raises(ConnectionClosedError, match="unknown field moods"),
        ):
            client.recv(10)

    def test_programs_need_no_origin_and_no_cookies(self, station: Station) -> None:
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect

        port = free_ports(1)
        with bridge("ws", station, "--host", "0.0.0.0", "--token", "secret", "--port", str(port)):
            wait_until(lambda: is_open(port))
            with connect(f"ws://127.0.0.1:{port}/ws?token=secret") as client:
                assert json.loads(client.recv(10))
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/events?token=secret&fields=seq", timeout=10
            ) as answer:
                assert answer.readline().startswith(b"event: ")
            with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{port}/ws"):
                pass
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/events?fields=seq", timeout=10)

    def test_a_rate_is_that_of_each_session(self, two_sessions: Station) -> None:
        from websockets.sync.client import connect

        port = free_ports(1)
        with bridge("ws", two_sessions, "--port", str(port)):
            wait_until(lambda: is_open(port))
            with connect(f"ws://127.0.0.1:{port}/ws?rate_hz=2&fields=session") as client:
                events = [json.loads(client.recv(10)) for _ in range(12)]
        sessions = [event["session"] for event in events if event["type"] == "prediction"]
        assert abs(sessions.count("one") - sessions.count("two")) <= 1

    def test_a_page_of_another_origin_is_refused(self, web_port: int) -> None:
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect
        from websockets.typing import Origin

        evil = Origin("http://evil.example")
        with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{web_port}/ws", origin=evil):
            pass

    def test_server_sent_events(self, web_port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{web_port}/events?fields=seq", timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [answer.readline().decode().strip() for _ in range(6)]
        assert lines[0] == "event: status", "what was known before comes first"
        assert lines[3] == "event: prediction"
        assert set(json.loads(lines[4].removeprefix("data: "))) == {"type", "seq"}
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"http://127.0.0.1:{web_port}/events?rate_hz=often", timeout=10)

    @pytest.mark.long
    def test_slow_client_does_not_affect_others(self, web_port: int) -> None:
        from websockets.sync.client import connect

        origin: Any = f"http://127.0.0.1:{web_port}"
        with connect(f"ws://127.0.0.1:{web_port}/ws", origin=origin, max_queue=1) as stalled:
            time.sleep(0.2)
            with connect(f"ws://127.0.0.1:{web_port}/ws?fields=seq", origin=origin) as client:
                events = [json.loads(client.recv(10)) for _ in range(60)]
            numbers = [event["seq"] for event in events if event["type"] == "prediction"]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert stalled.recv(10)

    def test_the_example_and_the_overlay_in_a_browser(self, web_port: int, tmp_path: Path) -> None:
        sync_api = pytest.importorskip("playwright.sync_api")
        chromium = shutil.which("chromium")
        if chromium is None:
            pytest.skip("chromium is not installed")
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            try:
                page = browser.new_page()
                page.goto(f"{(EXAMPLES / 'browser.html').as_uri()}?port={web_port}")
                page.wait_for_function("document.getElementById('top').textContent === 'happy'", timeout=20_000)
                page.goto(f"http://127.0.0.1:{web_port}/overlay")
                page.wait_for_function("document.getElementById('words').textContent.includes('hello there')")
                assert page.text_content("#top") == "happy"
                page.screenshot(path=str(tmp_path / "overlay.png"), omit_background=True)
            finally:
                browser.close()


def test_osc_receiver_gets_typed_addresses(station: Station) -> None:
    pytest.importorskip("pythonosc")
    from pythonosc.osc_bundle import OscBundle

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(30)
        with bridge("osc", station, "--to", f"127.0.0.1:{receiver.getsockname()[1]}"):
            received: dict[str, Any] = {}
            while f"/mien/{SESSION}/sentiment" not in received or f"/mien/{SESSION}/status/inference" not in received:
                for message in OscBundle(receiver.recv(65536)):
                    received[message.address] = message.params[0]
    assert received[f"/mien/{SESSION}/sentiment"] == pytest.approx(1.25)
    assert received[f"/mien/{SESSION}/emotion/happy"] == pytest.approx(0.4)
    assert received[f"/mien/{SESSION}/top"] == "happy"
    assert received[f"/mien/{SESSION}/share/vision"] == pytest.approx(0.5)
    assert received[f"/mien/{SESSION}/age_ms/text"] == -1.0
    assert received[f"/mien/{SESSION}/transcript"] == "hello there"
    assert received[f"/mien/{SESSION}/status/inference"] == "running"


def test_statuses_of_all_sessions_are_forwarded(two_sessions: Station) -> None:
    pytest.importorskip("pythonosc")
    from pythonosc.osc_bundle import OscBundle

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(30)
        with bridge("osc", two_sessions, "--to", f"127.0.0.1:{receiver.getsockname()[1]}", "--rate-hz", "5"):
            missing = {"/mien/one/status/inference", "/mien/two/status/inference"}
            deadline_s = time.monotonic() + 40
            while missing and time.monotonic() < deadline_s:
                missing -= {message.address for message in OscBundle(receiver.recv(65536))}
    assert not missing


INLET = """
import json, sys, pylsl
streams = pylsl.resolve_byprop("source_id", "mien-prediction-stage", 1, 30)
info = pylsl.StreamInlet(streams[0]).info()
channel, labels = info.desc().child("channels").child("channel"), []
for _ in range(info.channel_count()):
    labels.append([channel.child_value("label"), channel.child_value("unit")]); channel = channel.next_sibling()
inlet = pylsl.StreamInlet(streams[0])
marks = pylsl.StreamInlet(pylsl.resolve_byprop("source_id", "mien-marker-stage", 1, 30)[0])
samples = []
for _ in range(100):
    values, stamp = inlet.pull_sample(30)
    samples.append([values, stamp + inlet.time_correction(), pylsl.local_clock()])
marker = marks.pull_sample(30)[0][0]
print(json.dumps({"labels": labels, "samples": samples, "marker": marker}))
"""


def test_lsl_inlet_in_another_process(station: Station) -> None:
    pytest.importorskip("pylsl")
    with bridge("lsl", station):
        ran = subprocess.run([sys.executable, "-c", INLET], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    got = json.loads(ran.stdout.splitlines()[-1])
    labels = [label for label, _ in got["labels"]]
    values, _, _ = got["samples"][-1]
    received = dict(zip(labels, values, strict=True))
    assert received["sentiment"] == pytest.approx(1.25)
    assert received["emotion.happy"] == pytest.approx(0.4)
    assert received["share.audio"] == pytest.approx(0.5)
    assert math.isnan(received["age.text"])
    assert dict(got["labels"])["age.vision"] == "milliseconds"
    assert got["marker"].startswith(("word:hello", "status:inference:running"))
    # Stamps are capture times on LSL's clock, and not session times or times of arrival elsewhere.
    stamps = [stamp for _, stamp, _ in got["samples"]]
    assert stamps == sorted(stamps)
    ages_s = sorted(now - stamp for _, stamp, now in got["samples"][50:])
    assert abs(ages_s[len(ages_s) // 2]) < 2.0


class TestMqtt:
    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[tuple[int, Callable[[], None]]]:
        """A port, and a function that restarts the broker."""
        pytest.importorskip("aiomqtt")
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if mosquitto is None:
            pytest.skip("mosquitto is not installed")
        port = free_ports(1)
        config = tmp_path / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        running: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            for process in running:
                process.terminate()
                process.wait(10)
            running[:] = [subprocess.Popen([mosquitto, "-c", str(config)], stderr=subprocess.DEVNULL)]
            wait_until(lambda: is_open(port))

        start()
        yield port, start
        running[0].terminate()
        running[0].wait(10)

    @staticmethod
    def retained(port: int, *expected: str) -> dict[str, str]:
        """Retained messages once all of those expected are there."""

        async def read() -> dict[str, str]:
            import aiomqtt

            received: dict[str, str] = {}
            async with aiomqtt.Client("127.0.0.1", port) as client, asyncio.timeout(40):
                await client.subscribe("#")
                async for message in client.messages:
                    received[str(message.topic)] = bytes(message.payload).decode()
                    if all(topic in received for topic in expected):
                        break
            return received

        return asyncio.run(read())

    def test_values_discovery_and_availability(self, station: Station, broker: tuple[int, Callable[[], None]]) -> None:
        port, restart = broker
        config = f"homeassistant/sensor/mien_{SESSION}/sentiment/config"
        state = f"mien/{SESSION}/status/inference"
        topics = (f"mien/{SESSION}/prediction", f"mien/{SESSION}/emotion", "mien/bridge", config, state)
        with bridge("mqtt", station, "--broker", f"127.0.0.1:{port}", "--rate-hz", "10"):
            received = self.retained(port, *topics)
            assert json.loads(received[topics[0]])["session"] == SESSION
            assert received[topics[1]] == "happy"
            assert received["mien/bridge"] == "online"
            sensor = json.loads(received[config])
            assert sensor["state_topic"] == f"mien/{SESSION}/sentiment"
            assert float(received.get(sensor["state_topic"], "1.25")) == 1.25
            restart()  # it has lost everything, and gets it again
            received = self.retained(port, *topics)
            assert received["mien/bridge"] == "online"
        assert self.retained(port, "mien/bridge")["mien/bridge"] == "offline"

    def test_killed_bridge_leaves_its_last_will(self, station: Station, broker: tuple[int, Callable[[], None]]) -> None:
        port, _ = broker
        process = subprocess.Popen(
            command("bridge", "mqtt", station.endpoint, "--broker", f"127.0.0.1:{port}"), stderr=subprocess.DEVNULL
        )
        try:
            assert self.retained(port, "mien/bridge")["mien/bridge"] == "online"
        finally:
            process.kill()
            process.wait(10)
        wait_until(lambda: self.retained(port, "mien/bridge")["mien/bridge"] == "offline")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["osc", "--to", "nowhere:port"], "'nowhere:port' is not HOST:PORT"),
        (["mqtt", "--broker", "host:0"], "'host:0' is not HOST:PORT"),
        (["mqtt", "--prefix", "home/#"], "--prefix 'home/#' cannot begin a topic"),
    ],
)
def test_invalid_address_is_a_one_line_error(arguments: list[str], error: str) -> None:
    ran = subprocess.run(command("bridge", *arguments), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    assert error in ran.stderr
    assert "Traceback" not in ran.stderr
