"""Garbage on the ports of running processes: rejected, counted, and never predicted from."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mien.config import BusConfig
from mien.install import SAMPLE
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.subscriber import Subscriber
from tests.e2e.conftest import command
from tests.fuzz.mutation import mutate
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import split
from tests.needs import need_asset, run_program
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

MESSAGES = 1500


@pytest.fixture
def inference(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An inference process without workers yet."""
    with (tmp_path / "inference.log").open("wb") as log:
        process = subprocess.Popen(command("infer", "--port", str(port)), stdout=log, stderr=log)
    yield process
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert b"Traceback" not in (tmp_path / "inference.log").read_bytes()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    def is_alive() -> None:
        assert process.poll() is None, "it died"

    wait_until(condition, timeout_s=120, meanwhile=is_alive)


def nonsense(chance: random.Random) -> list[bytes]:
    """A malformed message on a topic that inference subscribes to."""
    kind = chance.choice(("features", "status", "cue", "features", "prediction", "preview"))
    inputs = seeds()[kind]
    frames = split(mutate(chance.choice(inputs), chance))
    topics = (b"features/default/vision", b"features/default/audio", b"status/default/video", b"cue/default/")
    if chance.random() < 0.3:
        frames = [chance.randbytes(chance.randrange(300)) for _ in range(chance.randrange(5))]
    if chance.random() < 0.05:
        frames = [b"", b"\x01", bytes(3 << 20)]
    return [chance.choice(topics), *frames[1:]]


def drops(subscriber: Subscriber) -> int:
    subscriber.wait(0.05)
    status = subscriber.statuses.get("inference")
    return sum(status.drops.values()) if status is not None else 0


def resident_mb(pid: int) -> float:
    psutil = pytest.importorskip("psutil")
    return float(psutil.Process(pid).memory_info().rss) / 2**20


@pytest.mark.timeout(400)
def test_malformed_features_are_rejected_and_counted(inference: subprocess.Popen[bytes], port: int) -> None:
    chance = random.Random(11)
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        wait_for(lambda: subscriber.wait(0.1) or "inference" in subscriber.statuses, inference)
        publishers = [Publisher(f"tcp://127.0.0.1:{port + offset}", BusConfig()) for offset in (1, 2, 3)]
        wait_for(lambda: all(p.has_subscriber(b"features/default/vision") for p in publishers), inference)
        before_mb, predictions = resident_mb(inference.pid), []
        for number in range(MESSAGES):
            publishers[number % 3].send(nonsense(chance), keep=False)
            if number % 20 == 0:  # as fast as its queues allow, so that all of it is looked at
                predictions += subscriber.wait(0.01)
        wait_for(lambda: drops(subscriber) >= 0.8 * MESSAGES, inference)
        assert resident_mb(inference.pid) < before_mb + 100
        assert all(prediction.sentiment is None for prediction in predictions), "made from nonsense"
        assert "supervisor" not in subscriber.statuses
        for publisher in publishers:
            publisher.close()


@pytest.mark.assets
@pytest.mark.timeout(400)
def test_random_bytes_on_a_port_do_not_affect_sessions(inference: subprocess.Popen[bytes], port: int) -> None:
    """Connections that send garbage, or nothing, to the predictions' port; then a real worker still gets through."""
    need_asset("face-landmarker")
    chance = random.Random(7)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        wait_for(lambda: subscriber.wait(0.1) or "inference" in subscriber.statuses, inference)
        before_mb = resident_mb(inference.pid)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        for number in range(300):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(greeting if number % 2 else b"")
                try:
                    # Lengths that promise 2^63 bytes among them.
                    stranger.sendall(chance.choice((b"\x02" + b"\x7f" + b"\xff" * 7, b"\x04\x29\x05READY", b"")))
                    stranger.sendall(chance.randbytes(chance.randrange(2000)))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it has hung up on us, as it should
        worker = subprocess.Popen(
            command("capture", "video", "--source", str(SAMPLE), "--port", str(port)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: any(p.sentiment is not None for p in subscriber.wait(0.1)), inference)
            assert resident_mb(inference.pid) < before_mb + 100
        finally:
            worker.terminate()
            worker.wait(20)
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("session", ["../../outside", "a/b", "..\\outside", "a" * 65, "a\nb", "", "\x1b[2J"])
def test_path_traversal_in_a_session_name_is_refused(session: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mien", "run", "--clip", str(SAMPLE), "--session", session]
    ran = run_program(line, environment={"XDG_STATE_HOME": str(tmp_path / "state" / "mien")})
    assert ran.returncode == 2
    assert "`session`" in ran.stderr
    assert "\x1b" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("*"))
