"""A session is recorded, replayed and analysed: real processes, the built-in sample and the default weights."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber
from mien.stream.recording.reader import open_recording
from tests.e2e.conftest import command
from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.assets]


def mien(*arguments: str, timeout_s: float = 240, expected: int = 0) -> subprocess.CompletedProcess[str]:
    """A command run to its end."""
    ran = subprocess.run(
        command(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False
    )
    assert ran.returncode == expected, ran.stderr
    return ran


@contextmanager
def running(*arguments: str, limit_bytes: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, stopped cleanly if it still runs."""

    def limit() -> None:
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    process = subprocess.Popen(
        command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=limit if limit_bytes else None,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        if process.stderr is not None:
            process.stderr.close()


def await_predictions(subscriber: Subscriber, count: int, timeout_s: float = 120) -> list[float]:
    """When each of the next predictions came."""
    arrivals: list[float] = []
    deadline_s = time.monotonic() + timeout_s
    while len(arrivals) < count and time.monotonic() < deadline_s:
        arrivals += [time.time()] * len(subscriber.wait(0.2))
    assert len(arrivals) >= count, "no predictions came"
    return arrivals


@pytest.fixture(scope="module")
def sample_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, recorded while it was played in full."""
    path = tmp_path_factory.mktemp("recording") / "sample.mcap"
    output = mien(
        "run", "--clip", str(SAMPLE), "--fast", "--port", str(free_ports()), "--json", "--record", str(path)
    ).stderr
    assert re.search(r"recorded \d+ predictions in", output), output
    return path


def test_replay_is_bit_equal_and_can_be_recorded(sample_recording: Path, port: int, tmp_path: Path) -> None:
    again = tmp_path / "again.mcap"
    output = mien(
        "replay", str(sample_recording), "--speed", "0", "--port", str(port), "--json", "--record", str(again)
    )  # fmt: skip
    recorded = list(open_recording(sample_recording).predictions())
    assert len(recorded) >= 22 * 25
    assert f"{len(recorded)} of {len(recorded)} predictions are bit-equal" in output.stderr
    shown = [json.loads(line) for line in output.stdout.splitlines()]
    assert [p["sentiment"] for p in shown] == [p.sentiment for p in recorded]
    figures = json.loads(mien("compare", str(sample_recording), str(again), "--json").stdout)
    assert figures["bit_equal"] == figures["instants"] == len(recorded)
    about = open_recording(again).about
    assert about is not None
    assert about.origin == "replay"


def test_late_and_killed_recorder_loses_at_most_a_second(port: int, tmp_path: Path) -> None:
    path = tmp_path / "killed.mcap"
    arguments = ("run", "--clip", str(SAMPLE), "--loop", "--port", str(port), "--quiet")
    with running(*arguments), Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        await_predictions(subscriber, 60)
        with running("record", str(path), "--port", str(port)) as recorder:
            wait_until(path.exists, meanwhile=lambda: await_predictions(subscriber, 1))
            arrivals = await_predictions(subscriber, 150)
            recorder.kill()
            killed_s = time.time()
            recorder.wait(20)
    recording = open_recording(path)
    assert recording.cut_off
    # All that came a second before, and another one for a machine on which the recorder had to wait for its turn.
    assert recording.last_ns / 1e9 > min(killed_s - 2.0, arrivals[-1])
    predictions = list(recording.predictions())
    assert len(predictions) > 20
    output = mien("replay", str(path), "--speed", "0", "--port", str(port), "--quiet").stderr
    assert "was cut off" in output
    assert f"{len(predictions)} of {len(predictions)} predictions are bit-equal" in output


def test_full_disk_ends_the_recording_but_not_the_stream(port: int, tmp_path: Path) -> None:
    path = tmp_path / "full.mcap"
    arguments = ("run", "--clip", str(SAMPLE), "--loop", "--port", str(port), "--quiet", "--asr", "none")
    with running(*arguments) as session, Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        await_predictions(subscriber, 5)
        # The rows of the last ten seconds come first: about a megabyte before the first prediction.
        with running("record", str(path), "--port", str(port), limit_bytes=1_500_000) as recorder:
            output = recorder.communicate(timeout=120)[1]
            assert recorder.returncode == 12
        (line,) = [line for line in output.splitlines() if line.startswith("mien: ")]
        assert "may not grow any more" in line
        assert "Traceback" not in output
        await_predictions(subscriber, 20)
        assert session.poll() is None
    assert len(list(open_recording(path).predictions())) > 0


def test_port_in_use_and_invalid_recordings_are_one_line_errors(
    sample_recording: Path, port: int, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a session has just released it
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        output = mien("replay", str(sample_recording), "--port", str(port), expected=6).stderr
    assert output.count("\n") == 1
    assert "is in use" in output
    (tmp_path / "diary.mcap").write_text("dear diary")
    for name in ("replay", "report", "export", "label"):
        output = mien(name, str(tmp_path / "diary.mcap"), expected=12).stderr
        assert output.splitlines() == [
            f"mien: {tmp_path / 'diary.mcap'} is not an MCAP file; give one that `mien record` made"
        ]
    output = mien("record", str(tmp_path / "diary.mcap"), "--port", str(port), expected=12).stderr
    assert "exists; choose another name" in output
    nothing = tmp_path / "nothing.mcap"
    with running("record", str(nothing), "--port", str(port)) as recorder:
        wait_until(nothing.exists)
        recorder.send_signal(signal.SIGINT)
        output = recorder.communicate(timeout=60)[1]
        assert recorder.returncode == 12
    assert "nothing came" in output
    assert not nothing.exists()


def test_report_and_exports_of_the_sample_agree(sample_recording: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    mien("report", str(sample_recording), "-o", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    content = json.loads(mien("export", str(sample_recording), "--json").stdout)
    rows = list(csv.DictReader(mien("export", str(sample_recording), "--csv").stdout.splitlines()))
    summary = content["summary"]
    assert len(rows) == summary["predictions"] == len(content["predictions"])
    smooth = [float(row["sentiment_smooth"]) for row in rows if row["sentiment_smooth"]]
    assert sum(smooth) / len(smooth) == pytest.approx(summary["sentiment"]["mean"])
    assert f"{summary['sentiment']['mean']:+.2f}" in page
    assert f"{summary['coverage']['vision']:.1%}" in page
    subtitles = mien("export", str(sample_recording), "--srt").stdout
    assert "wonderful" in subtitles
    assert "terrible" in subtitles
    assert subtitles.index("wonderful") < subtitles.index("terrible")


def test_labelled_segments_are_extracted_and_trained_on(sample_recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = folder / "talk.mcap"
    path.write_bytes(sample_recording.read_bytes())
    parts: list[dict[str, Any]] = json.loads(SAMPLE.with_suffix(".json").read_text())["parts"]
    for part, sentiment in zip(parts[:3], ("0", "2", "-2"), strict=True):
        stretch = (str(part["end_s"] - 3), str(part["end_s"] - 0.2))
        mien("label", str(path), "--add", *stretch, "-s", sentiment, "-e", part["emotion"])
    dataset = tmp_path / "dataset"
    assert "train 2, valid 1" in mien("extract", str(folder), "-o", str(dataset), "--jobs", "1").stdout
    from mien.models.data.dataset_files import read_dataset

    samples = read_dataset(dataset).samples
    assert [s.labels.sentiment for s in samples] == [0, 2, -2]
    for sample in samples:
        assert set(sample.tracks) == {"text", "audio", "vision"}
        assert sample.tracks["vision"].mask.mean() > 0.8
    work = tmp_path / "work"
    output = mien(
        "train", "--data", str(dataset), "--stages", "fusion", "--steps", "1", "--out", str(work / "out"),
        "--work", str(work),
    ).stdout  # fmt: skip
    assert '"checkpoint"' in output
    assert (work / "out" / "cmmsf.safetensors").is_file()


def test_ctrl_c_closes_the_file_cleanly(port: int, tmp_path: Path) -> None:
    path = tmp_path / "talk.mcap"
    arguments = ("run", "--clip", str(SAMPLE), "--loop", "--port", str(port), "--quiet", "--asr", "none")
    with running(*arguments), Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        await_predictions(subscriber, 5)
        with running("record", str(path), "--port", str(port)) as recorder:
            wait_until(path.exists, meanwhile=lambda: await_predictions(subscriber, 1))
            await_predictions(subscriber, 30)
            recorder.send_signal(signal.SIGINT)
            output = recorder.communicate(timeout=60)[1]
            assert recorder.returncode == 0
    assert re.search(r"\d+ predictions, \d", output)
    assert not open_recording(path).cut_off
    assert os.stat(path).st_size > 10_000
