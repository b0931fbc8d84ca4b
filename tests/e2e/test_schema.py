"""Ten thousand messages, checked against the published JSON Schema by a subscriber in another language."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from mien.config import BusConfig
from mien.messages import EMOTIONS, About, Phrase, Prediction, Status, Transcript, Word, WorkerState
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import (
    Frames,
    decode_about,
    decode_prediction,
    decode_status,
    encode_about,
    encode_prediction,
    encode_status,
)

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs" / "messages.schema.json"
MESSAGES = 10_000
_WORKERS = ("video", "audio", "text", "inference", "supervisor")
_STATES: tuple[WorkerState, ...] = ("starting", "ready", "running", "degraded", "ended", "stopped", "failed")
NOW_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of the subscriber, with what it needs installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for path in (Path(__file__).parent / "node").iterdir():
        shutil.copy(path, folder)
    install = [npm, "install", "--no-audit", "--no-fund"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install zeromq and ajv here: {installed.stderr.strip()[-200:]}")
    return [node, str(folder / "checker.mjs"), str(SCHEMA)]


def message(number: int, chance: random.Random) -> Frames:
    """One of everything that is published, with what may be absent absent at times."""
    if number % 50 == 0:
        return encode_about(
            About(
                session="default", run=7, t_ns=NOW_NS, origin="live", label="camera", model="cmmsf-0/onnx-fp32",
                config={"bus": {"port": 5560}}, versions={"mien": "0"}, modalities=(),
            )
        )  # fmt: skip
    if number % 10 == 0:
        return encode_status(
            Status(
                session="default", worker=chance.choice(_WORKERS), run=7,
                t_ns=NOW_NS + number, state=chance.choice(_STATES),
                pid=number, fps=chance.random() * 30, drops={"late": number} if chance.random() < 0.5 else {},
                lag_ms=chance.choice((None, 3.5)), last_error=chance.choice((None, "größer als gedacht \U0001f642")),
                cpu_percent=chance.choice((None, 12.5)), rss_mb=chance.choice((None, 250.0)),
                detail={"faces": 1, "source": "0", "lost": None, "share": 0.5, "on": True},
            )
        )  # fmt: skip
    made = chance.random() < 0.8
    shares = [chance.random() for _ in EMOTIONS]
    emotions = {name: share / sum(shares) for name, share in zip(EMOTIONS, shares, strict=True)}
    words = tuple(Word("schön", NOW_NS, NOW_NS + 5, chance.random() < 0.5, 0.5) for _ in range(chance.randrange(4)))
    return encode_prediction(
        Prediction(
            session="default", run=7, seq=number, t_end_ns=NOW_NS + number,
            sentiment=chance.uniform(-3, 3) if made else None, sentiment_smooth=0.5 if made else None,
            emotions=emotions if made else None,
            confidence=chance.random() if made else None, gates={"vision": 0.5, "audio": 0.5, "text": 0.0},
            age_ms={"vision": 3.5, "audio": 20.0, "text": None}, absent={"text": "switched off"},
            abstains=None if made else "no face, no voice and no words", transcript=Transcript("so", "be"), words=words,
            phrases=(Phrase(NOW_NS, NOW_NS + 5, chance.uniform(-3, 3), "sad"),) if words else (),
            latency={"infer": 2.5, "total": 14.0}, model="cmmsf-0/onnx-fp32", inputs={"vision": ((7, 0, number),)},
        )
    )  # fmt: skip


def publish(port: int, checker: list[str], count: int, spoil: bool) -> dict[str, object]:
    """The checker's report on `count` messages; with `spoil`, one of them has a number instead of a word."""
    chance = random.Random(1)
    publisher = Publisher(f"tcp://127.0.0.1:{port}", BusConfig(high_water_mark=1000), lossless=True)
    process = subprocess.Popen(
        [*checker, publisher.endpoint, str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline_s = time.monotonic() + 60
        while not all(publisher.has_subscriber(kind) for kind in (b"prediction/x/", b"status/x/y", b"about/x/")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        for number in range(1, count + 1):
            frames = message(number, chance)
            for kind, decode in ((b"pred", decode_prediction), (b"stat", decode_status), (b"abou", decode_about)):
                if frames[0].startswith(kind):
                    decode(frames)  # what is checked is what mien itself takes
            if spoil and number == count // 2 + 1:
                frames[2] = msgspec.json.encode(json.loads(frames[2]) | {"session": 5})
            publisher.send(frames, keep=False)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        publisher.close()
    assert process.returncode == 0, errors
    report: dict[str, object] = json.loads(out)
    return report


@pytest.mark.timeout(400)
def test_ten_thousand_messages_follow_the_schema(checker: list[str], port: int) -> None:
    report = publish(port, checker, MESSAGES, spoil=False)
    assert report["first"] is None
    assert report["messages"] == report["valid"] == MESSAGES
    assert report["prediction"] == MESSAGES * 9 // 10
    assert report["status"] == MESSAGES // 10 - MESSAGES // 50
    assert report["about"] == MESSAGES // 50


@pytest.mark.timeout(400)
def test_schema_check_finds_an_invalid_message(checker: list[str], port: int) -> None:
    report = publish(port, checker, 100, spoil=True)
    assert report["valid"] == 99
    assert "session must be string" in str(report["first"])
