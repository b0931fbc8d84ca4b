"""The examples in `examples/`, started like a user would: separate processes, a real publisher, a real `mien run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mien.config import BusConfig
from mien.messages import EMOTIONS, Prediction, Transcript
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_prediction
from tests.needs import need_assets
from tests.ports import free_ports

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
Command = list[str]


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node example with its dependency installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "subscriber.mjs"):
        shutil.copy(EXAMPLES / name, folder)
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=180
    )
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install zeromq here: {installed.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(params=["python", "node"])
def example(request: pytest.FixtureRequest) -> Command:
    """The command line of an example, less its arguments."""
    if request.param == "python":
        return [sys.executable, str(EXAMPLES / "subscriber.py")]
    folder: Path = request.getfixturevalue("node_folder")
    return [shutil.which("node") or "node", str(folder / "subscriber.mjs")]


class Station:
    """Publishes predictions in a thread: one more whenever `more` is called, and last values in between."""

    def __init__(self, endpoint: str, run: int) -> None:
        self._publisher = Publisher(endpoint, BusConfig())
        self._run, self._seq = run, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.wait(0.01):
            if not self._publisher.has_subscriber(b"prediction/default/"):
                continue
            if self._seq == 1:
                frames = encode_prediction(prediction(self._run, 99))
                self._publisher.send([frames[0], b"\x63", frames[2]], keep=False)  # version 99: to be refused
            self._publisher.send(encode_prediction(prediction(self._run, self._seq)))
            self._seq += 1
        self._publisher.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


def prediction(run: int, seq: int) -> Prediction:
    """One in three abstains."""
    abstains = "nothing is observed" if seq % 3 == 2 else None
    return Prediction(
        session="default",
        run=run,
        seq=seq,
        t_end_ns=seq,
        sentiment=None if abstains else 1.25,
        sentiment_smooth=None if abstains else 1.0,
        emotions=None if abstains else {name: 0.4 if name == "happy" else 0.1 for name in EMOTIONS},
        confidence=None if abstains else 0.4,
        gates={"text": 0.5, "audio": 0.3, "vision": 0.2},
        age_ms={"text": 900.0, "audio": 20.0, "vision": None},
        abstains=abstains,
        transcript=Transcript(committed="schön, dass es läuft"),
    )


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_ports()}"


def start(example: Command, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [*example, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def numbers(lines: list[str]) -> list[int]:
    return [int(line[1:].split(" ", 1)[0]) for line in lines]


def test_example_prints_predictions(example: Command, endpoint: str) -> None:
    """Started before the publisher; what is shown is what was sent; a message of another version is passed over."""
    process = start(example, endpoint, "6")
    station = Station(endpoint, run=1)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        station.close()
    assert process.returncode == 0
    lines = out.splitlines()
    assert len(lines) == 6
    first, *_ = numbers(lines)
    assert numbers(lines) == list(range(first, first + 6))
    assert sum("no prediction: nothing is observed" in line for line in lines) == 2
    for line in lines:
        assert line.endswith("schön, dass es läuft")
        assert "no prediction" in line or ("+1.25" in line and "happy" in line and "40%" in line and "text 50%" in line)


def test_example_survives_a_restart(example: Command, endpoint: str) -> None:
    """The publisher restarts: the example continues, and the numbers restart."""
    process = start(example, endpoint)
    assert process.stdout is not None
    try:
        station = Station(endpoint, run=1)
        seen = [process.stdout.readline() for _ in range(3)]
        station.close()
        assert numbers(seen) == sorted(numbers(seen))
        station = Station(endpoint, run=2)
        line = process.stdout.readline()
        while line and numbers([line]) != [0]:  # what was still under way from the first run
            line = process.stdout.readline()
        station.close()
        assert numbers([line]) == [0]
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


class Session(NamedTuple):
    """A `mien demo` on the sample: real capture workers, a real model."""

    process: subprocess.Popen[bytes]
    endpoint: str
    log: Path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    need_assets()
    port, log = free_ports(), tmp_path_factory.mktemp("session") / "session.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "mien", "demo", "--sample", "--headless", "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        yield Session(process, f"tcp://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.assets
@pytest.mark.timeout(420)
def test_example_prints_predictions_of_a_running_session(example: Command, session: Session) -> None:
    process = start(example, session.endpoint, "40")
    try:
        out = follow(process, session)
    finally:
        process.kill()
        process.communicate()
    shown = [line for line in out.splitlines() if "no prediction" not in line]
    assert len(out.splitlines()) == 40
    assert shown
    assert all(any(f" {name}" in line for name in EMOTIONS) for line in shown)


def follow(process: subprocess.Popen[str], session: Session) -> str:
    """An example's output until it ends; a session that ends before it is a failure."""
    while True:
        try:
            out, errors = process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            assert session.process.poll() is None, session.log.read_text(encoding="utf-8", errors="replace")
            continue
        assert process.returncode == 0, errors
        return out
