"""`mien status`, /metrics and /health. Real publishers, real HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mien.config import BusConfig
from mien.errors import BusError
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_prediction, encode_status
from mien.stream.monitoring.exporter import Exporter
from mien.stream.monitoring.notify import ServiceManager
from tests.needs import fetch
from tests.stream.bus.test_wire import PREDICTION, STATUS
from tests.waiting import wait_until

TIMEOUT_S = 30.0
INFERENCE = msgspec.structs.replace(STATUS, worker="inference", state="running", last_error=None)


class Station:
    """An inference process as seen from outside: predictions 20 times a second, and statuses."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.absent: dict[str, str] = {}
        self.abstains: str | None = None
        self.statuses = [INFERENCE]
        self.ahead_ns: dict[str, int] = {}  # clocks of workers on other machines
        self._publisher = Publisher(endpoint, BusConfig())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        seq = 0
        while not self._stop.wait(0.05):
            prediction = msgspec.structs.replace(
                PREDICTION, seq=seq, absent=self.absent, abstains=self.abstains, latency={"infer": 2.0, "total": 12.0}
            )
            self._publisher.send(encode_prediction(prediction))
            for status in self.statuses:
                t_ns = time.monotonic_ns() + self.ahead_ns.get(status.worker, 0)
                self._publisher.send(encode_status(msgspec.structs.replace(status, t_ns=t_ns)))
            seq += 1
        self._publisher.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)


@pytest.fixture
def station(port: int) -> Iterator[Station]:
    station = Station(f"tcp://127.0.0.1:{port}")
    yield station
    station.close()


@pytest.fixture
def exporter(station: Station) -> Iterator[Exporter]:
    exporter = Exporter(station.endpoint, PREDICTION.session, 0)
    yield exporter
    exporter.close()


def figures(exporter: Exporter) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values, parsed as Prometheus does."""
    _, text = fetch(exporter.port, "/metrics")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def health(exporter: Exporter, verdict: str) -> dict[str, object]:
    """The answer of /health, once it has that verdict."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        code, text = fetch(exporter.port, "/health")
        condition: dict[str, object] = json.loads(text)
        assert code == (503 if condition["verdict"] == "down" else 200)
        if condition["verdict"] == verdict:
            return condition
        assert time.monotonic() < deadline_s, condition
        time.sleep(0.1)


def test_metrics_of_a_healthy_session(station: Station, exporter: Exporter) -> None:
    supervisor = msgspec.structs.replace(
        INFERENCE, worker="supervisor", detail={"video.state": "running", "video.restarts": 3}
    )
    video = msgspec.structs.replace(INFERENCE, worker="video", drops={"late": 7}, rss_mb=2.0)
    measured = msgspec.structs.replace(INFERENCE, detail={"video.clock_offset_ms": 3000.0, "video.clock_error_ms": 2.0})
    station.statuses = [measured, video, supervisor]
    condition = health(exporter, "ok")
    assert condition["problems"] == []
    wait_until(lambda: ("mien_process_restarts_total", ("video",)) in figures(exporter))
    seen = figures(exporter)
    assert seen["mien_up", (PREDICTION.session,)] == 1
    assert seen["mien_process_restarts_total", ("video",)] == 3
    assert seen["mien_clock_offset_seconds", ("video",)] == 3
    assert seen["mien_clock_error_seconds", ("video",)] == 0.002
    assert seen["mien_drops_total", ("late", "video")] == 7
    assert seen["mien_process_memory_bytes", ("video",)] == 2 * 2**20
    before = seen["mien_predictions_total", ()]
    assert before > 0
    assert seen["mien_latency_seconds_bucket", ("0.015", "total")] == seen["mien_latency_seconds_count", ("total",)]
    assert seen["mien_latency_seconds_bucket", ("0.01", "total")] == 0
    wait_until(lambda: figures(exporter)["mien_predictions_total", ()] > before)


def test_problems_are_reported_and_cleared(station: Station, exporter: Exporter) -> None:
    health(exporter, "ok")
    station.absent = {"vision": "camera 0 was lost"}
    station.statuses = [
        INFERENCE,
        msgspec.structs.replace(STATUS, worker="video", state="failed", last_error="it died"),
    ]
    problems = str(health(exporter, "degraded")["problems"])
    assert "vision is masked: camera 0 was lost" in problems
    assert "video: failed, it died" in problems
    assert figures(exporter)["mien_masked", ("vision",)] == 1
    assert figures(exporter)["mien_process_up", ("video",)] == 0
    station.absent = {}
    station.statuses = [INFERENCE, msgspec.structs.replace(INFERENCE, worker="video")]
    health(exporter, "ok")


def test_session_without_any_worker_is_a_problem(station: Station, exporter: Exporter) -> None:
    station.abstains = "no evidence"
    assert health(exporter, "degraded")["problems"] == ["nothing is captured: no worker has reported"]
    station.statuses = [INFERENCE, msgspec.structs.replace(INFERENCE, worker="audio")]
    health(exporter, "ok")  # nobody speaks


def test_silent_session_is_down(station: Station, exporter: Exporter) -> None:
    health(exporter, "ok")
    station.close()
    assert "no predictions" in str(health(exporter, "down")["problems"])
    wait_until(lambda: figures(exporter)["mien_process_up", ("inference",)] == 0)
    seen = figures(exporter)
    assert seen["mien_up", (PREDICTION.session,)] == 0
    assert seen["mien_process_rows_per_second", ("inference",)] == 0
    outdated = {"mien_process_memory_bytes", "mien_process_cpu_ratio", "mien_age_seconds", "mien_masked"}
    assert not outdated & {name for name, _ in seen}


@pytest.mark.parametrize("ahead_s", [-10, 10])
def test_clock_of_another_machine_makes_no_process_silent(station: Station, exporter: Exporter, ahead_s: int) -> None:
    station.ahead_ns = {"video": ahead_s * 10**9}
    measured = msgspec.structs.replace(INFERENCE, detail={"video.clock_offset_ms": ahead_s * 1000.0})
    station.statuses = [measured, msgspec.structs.replace(INFERENCE, worker="video")]
    wait_until(lambda: ("mien_process_up", ("video",)) in figures(exporter))
    seen = figures(exporter)
    assert [seen["mien_process_up", (worker,)] for worker in ("inference", "video")] == [1, 1]


def test_status_of_several_sessions_keeps_them_apart(station: Station) -> None:
    there = msgspec.structs.replace(INFERENCE, session="another", last_error="it has a fault", state="degraded")
    station.statuses = [INFERENCE, there]
    line = [sys.executable, "-m", "mien", "status", station.endpoint]
    ran = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=60, check=False)
    another, whole = sorted(map(json.loads, ran.stdout.splitlines()), key=lambda each: each["session"] != "another")
    assert (another["verdict"], whole["verdict"]) == ("down", "ok")
    assert another["processes"][0]["last_error"] == "it has a fault"
    assert ran.returncode == 1, "as one of them has a fault"
    one = subprocess.run([*line, "--session", whole["session"]], capture_output=True, timeout=60, check=False)
    assert one.returncode == 0


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:9464", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:9464", 200),
        ("mien.example:9464", 421),
        ("127.0.0.1.example", 421),
        ("localhost@mien.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_foreign_host_name_is_refused(exporter: Exporter, host: str, code: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=10)
    connection.request("GET", "/metrics", headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == code
    assert (b"mien_" in body) == (code == 200)


def test_unknown_paths_and_ports_in_use_are_clear_errors(station: Station, exporter: Exporter) -> None:
    assert fetch(exporter.port, "/etc/passwd")[0] == 404
    with pytest.raises(BusError, match="choose another port"):
        Exporter(station.endpoint, "default", exporter.port)


def test_status_exits_with_the_state(station: Station, port: int) -> None:
    def look(endpoint: str, *options: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mien", "status", endpoint, *options]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    shown = look(station.endpoint)
    assert shown.returncode == 0, shown.stderr
    assert "inference" in shown.stdout
    assert "running" in shown.stdout
    station.absent = {"audio": "microphone lost", "text": "switched off"}
    station.statuses = [INFERENCE, msgspec.structs.replace(INFERENCE, worker="audio")]
    amiss = look(station.endpoint, "--json")
    assert amiss.returncode == 1
    condition = json.loads(amiss.stdout)
    assert condition["verdict"] == "degraded"
    assert condition["problems"] == ["audio is masked: microphone lost"], (
        "a modality that is not captured is no problem"
    )
    assert {each["name"]: each["masked"] for each in condition["modalities"]}["text"] == "switched off"
    station.close()
    silent = look(f"tcp://127.0.0.1:{port + 1}", "--timeout", "0.5")
    assert silent.returncode == 6
    assert "is `mien run` running" in silent.stderr


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd's socket is a Unix one")
def test_systemd_is_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        manager = ServiceManager()
        manager.ready()
        manager.alive("25 a second")
        manager.alive("too soon to be sent again")
        manager.stopping()
        received = [receiver.recv(200) for _ in range(3)]
    assert received == [b"READY=1", b"WATCHDOG=1\nSTATUS=25 a second", b"STOPPING=1"]
    ServiceManager().ready()  # the socket is gone: nothing happens
