"""`mien watch`: its view at every size, its keys, its lines, and its message while nothing comes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from rich.console import Console

from mien.cli import _view
from mien.clock import Clock
from mien.config import BusConfig
from mien.messages import EMOTIONS, Prediction, Status, Transcript, Word
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_prediction, encode_status

ERROR = "camera 0 has delivered no picture for 2.3 s and is opened again when it is back"
UNCLEAR = "speech not understood: unclear, or another language"
NEWEST = "there is a newest word"


def prediction(t_ns: int = 1_700_000_000 * 10**9, seq: int = 0) -> Prediction:
    text = f"so this is a long sentence that somebody said in the last few seconds and {NEWEST}"
    return Prediction(
        session="mine", run=1, seq=seq, t_end_ns=t_ns, sentiment=-1.2, sentiment_smooth=-1.25, confidence=0.75,
        emotions=dict.fromkeys(EMOTIONS, 1 / 7), gates={"vision": 0.6, "audio": 0.4, "text": 0.0},
        age_ms={"vision": 32.0, "audio": 20.0, "text": None}, absent={"text": UNCLEAR}, latency={"total": 14.2},
        words=tuple(Word(word, t_ns, t_ns) for word in text.split()), model="cmmsf-7cd1e7a9/onnx-fp32",
    )  # fmt: skip


def status(worker: str) -> Status:
    return Status(
        session="mine", worker=worker, run=1, t_ns=1, state="running", pid=1, fps=30, cpu_percent=12, rss_mb=209
    )


STATUSES = {worker: status(worker) for worker in ("video", "audio", "text", "inference")}


def drawn(width: int, height: int, statuses: dict[str, Status]) -> list[str]:
    view = _view.render(
        prediction(), statuses, badge="WATCH", label="tcp://127.0.0.1:5560", per_second=29.9, width=width,
        height=height, fill=True, history=[0.5] * 50,
    )  # fmt: skip
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("size", [(50, 15), (60, 20), (80, 24), (140, 45)])
@pytest.mark.parametrize("troubled", [False, True])
def test_nothing_is_truncated_and_the_full_terminal_is_used(size: tuple[int, int], troubled: bool) -> None:
    statuses = STATUSES
    if troubled:
        statuses = STATUSES | {"video": msgspec.structs.replace(status("video"), state="degraded", last_error=ERROR)}
    lines = drawn(*size, statuses)
    text = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    assert len(lines) == size[1]
    assert max(map(len, lines)) <= size[0]
    assert max(len(line.rstrip()) for line in lines) >= size[0] - 2, "the whole width is used"
    for part in (*EMOTIONS, "-1.25", "75% sure", "60%", "32 ms old", UNCLEAR, NEWEST, "29.9 predictions/s"):
        assert part in text, part
    assert ERROR in text or not troubled
    assert "…" not in text


def test_lines_have_the_time_of_day_or_the_elapsed_time() -> None:
    at_s = 1_700_000_000
    assert _view.line(prediction(at_s * 10**9)).startswith(time.strftime("%H:%M:%S", time.localtime(at_s)) + ".00 ")
    assert _view.line(prediction(3_725_250_000_000)).startswith("1:02:05.25 ")


@pytest.fixture
def others() -> list[str]:
    """Further sessions at the endpoint."""
    return []


@pytest.fixture
def endpoint(others: list[str]) -> Iterator[str]:
    """A session "mine" that predicts ten times a second."""
    publisher = Publisher("tcp://127.0.0.1:*", BusConfig())
    address, clock, ended = publisher.address, Clock(), threading.Event()

    def publish() -> None:
        for seq in range(10_000):
            publisher.send(encode_prediction(prediction(clock.now_ns(), seq)))
            publisher.send(encode_status(status("inference")))
            for name in others:
                another = msgspec.structs.replace(
                    prediction(clock.now_ns(), seq), session=name, transcript=Transcript(name)
                )
                publisher.send(encode_prediction(another))
            if ended.wait(0.1):
                return

    thread = threading.Thread(target=publish)
    thread.start()
    yield address
    ended.set()
    thread.join()
    publisher.close()


def test_waiting_for_a_missing_session_is_reported(endpoint: str) -> None:
    command = [sys.executable, "-m", "mien", "watch", endpoint, "--session", "nosuch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    text = process.stderr.readline()
    process.terminate()
    process.communicate(timeout=20)
    assert "there is no session 'nosuch'" in text
    assert "heard there: mine" in text


def test_lines_of_several_sessions_name_them(endpoint: str, others: list[str]) -> None:
    others.append("yours")
    command = [sys.executable, "-m", "mien", "watch", endpoint, "--count", "12"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert {line.split()[0] for line in lines[-2:]} == {"mine", "yours"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_view_shows_one_of_several_sessions(endpoint: str, others: list[str]) -> None:
    import fcntl
    import pty
    import struct
    import termios

    others.append("yours")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 120, 0, 0))
    command = [sys.executable, "-m", "mien", "watch", endpoint]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    shown, enough = b"", 40
    deadline_s = time.monotonic() + 60
    while shown.count(b"--session shows") < enough:
        assert time.monotonic() < deadline_s, shown
        shown += os.read(ours, 65536)
    process.terminate()
    reader = threading.Thread(target=lambda: [os.read(ours, 65536) for _ in range(1000)], daemon=True)
    reader.start()
    process.wait(20)
    assert (b"mine; --session shows yours" in shown) != (b"yours; --session shows mine" in shown)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_q_quits_and_restores_the_terminal(endpoint: str) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 15, 50, 0, 0))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "mien", "watch", endpoint]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    shown = b""
    deadline_s = time.monotonic() + 60
    while not (b"surprise" in shown and b"predictions/s" in shown):  # the first screen may be of before any came
        assert time.monotonic() < deadline_s, shown
        shown += os.read(ours, 65536)
    os.write(ours, b"q")
    reader = threading.Thread(target=lambda: [os.read(ours, 65536) for _ in range(1000)], daemon=True)
    reader.start()  # or it could not write its last
    assert process.wait(20) == 0
    assert termios.tcgetattr(theirs) == before
