"""The main job: a clip in, rolling predictions out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import soxr
import zmq

import mien
from mien.install import SAMPLE
from mien.messages import FeatureWindow
from mien.models.data.dataset_files import read_dataset
from mien.stream.bus.subscriber import Subscriber
from mien.stream.bus.wire import decode_features, json_schema
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.geometry import upright_bgr
from tests.e2e.conftest import command, comparable, run_json
from tests.needs import run_program
from tests.ports import free_ports
from tests.stream.pictures import write_clip
from tests.stream.sources.media import RATE, write_tracks

pytestmark = [pytest.mark.e2e, pytest.mark.assets]
PARTS = json.loads(SAMPLE.with_suffix(".json").read_text())["parts"]


def test_every_frame_is_predicted_and_words_are_recognised(fast_sample: list[dict[str, Any]]) -> None:
    assert len(fast_sample) >= 22 * 25
    assert [p["seq"] for p in fast_sample] == list(range(len(fast_sample)))
    times = [p["t_end_ns"] for p in fast_sample]
    assert times == sorted(times)
    words: dict[int, str] = {}
    for prediction in fast_sample:
        words |= {w["t_end_ns"]: w["text"].lower().strip(" .,!?") for w in prediction["words"] if w["committed"]}
    for word in ("happy", "wonderful", "terrible", "wrong", "angry", "fair"):
        assert word in words.values()


def test_sentiment_and_emotion_follow_the_parts_of_the_sample(fast_sample: list[dict[str, Any]]) -> None:
    def middle(part: dict[str, Any]) -> list[dict[str, Any]]:
        # The window is five seconds long: only the end of a part is free of the one before.
        begin_ns, end_ns = (part["end_s"] - 2.0) * 1e9, part["end_s"] * 1e9
        return [p for p in fast_sample if begin_ns <= p["t_end_ns"] < end_ns and p["emotions"]]

    sentiment = {part["emotion"]: np.mean([p["sentiment"] for p in middle(part)]) for part in PARTS}
    assert sentiment["happy"] > 0.5
    assert sentiment["sad"] < -0.5
    assert sentiment["angry"] < -0.5
    assert sentiment["angry"] < sentiment["neutral"] < sentiment["happy"]
    for part in PARTS:
        expected = part["emotion"]
        share = {p["emotion"]: np.mean([q["emotions"][expected] for q in middle(p)]) for p in PARTS}
        assert max(share, key=share.__getitem__) == expected, f"{expected} should be likeliest in its own part: {share}"
        seen = middle(part)
        right = sum(max(p["emotions"], key=p["emotions"].__getitem__) == expected for p in seen)
        assert right > len(seen) / 2, f"{expected} is on top in {right} of {len(seen)} predictions of its part"


@pytest.mark.long
def test_a_still_neutral_face_in_silence_stays_neutral(port: int, tmp_path: Path) -> None:
    """For half a minute, on the same path as a camera's pictures: neither drift nor a mood that comes and goes.

    The portrait smiles a little, so that neutral and happy are about as likely.
    """
    with av.open(str(SAMPLE)) as container:
        neutral = next(frame for frame in container.decode(video=0) if (frame.time or 0) >= 1.0)
    clip = write_clip(tmp_path / "still.mp4", [neutral.to_ndarray(format="bgr24")] * (30 * 25))
    predictions = [p for p in run_json(port, "--clip", str(clip), "--fast")[0] if not p["abstains"]]
    assert len(predictions) >= 29 * 25
    sentiment = np.array([p["sentiment"] for p in predictions])
    assert np.abs(sentiment).max() <= 0.5
    assert (np.diff(np.sign(sentiment)) != 0).sum() <= 1
    assert np.ptp(sentiment[6 * 25 :]) < 0.05  # once it fills the window


def test_predictions_are_well_formed(fast_sample: list[dict[str, Any]]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    for prediction in fast_sample[::50]:
        validator.validate(prediction)
    for prediction in fast_sample:
        if prediction["emotions"] is not None:
            assert sum(prediction["emotions"].values()) == pytest.approx(1.0, abs=1e-4)
            assert sum(prediction["gates"].values()) == pytest.approx(1.0, abs=1e-4)
            assert -4 < prediction["sentiment"] < 4


@pytest.mark.long
def test_two_complete_runs_are_bit_equal(port: int, fast_sample: list[dict[str, Any]]) -> None:
    again, _ = run_json(port, "--clip", str(SAMPLE), "--fast")
    assert comparable(again) == comparable(fast_sample)


def record_features(port: int, *arguments: str) -> dict[str, list[FeatureWindow]]:
    """Run a clip and take down what its workers publish. Times are counted from the clip's start."""
    process = subprocess.Popen(
        command("run", "--json", "--asr", "none", "--port", str(port), "--session", "features", *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    listeners = {name: eager_listener(port + offset) for name, offset in (("vision", 1), ("audio", 2))}
    taken: dict[str, list[FeatureWindow]] = {name: [] for name in listeners}
    alive = True
    while alive:
        alive = process.poll() is None
        time.sleep(0.002)
        for name, listener in listeners.items():
            while listener.poll(0):
                taken[name].append(decode_features(listener.recv_multipart()))
    for listener in listeners.values():
        listener.close(0)
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read().decode()
    process.stderr.close()
    return taken


def eager_listener(port: int) -> zmq.Socket[bytes]:
    """Subscribed to features the moment that a worker has its port.

    A clip that is played in full does not wait for anybody but the inference process, and an ordinary receiver, which
    asks a port that nobody has at growing intervals, may miss half of it.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RECONNECT_IVL, 2)
    socket.setsockopt(zmq.RCVHWM, 10_000)
    socket.subscribe(b"features/")
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


def rows(messages: list[FeatureWindow]) -> dict[int, np.ndarray]:
    """Rows by milliseconds from the last one: a subscriber may have missed the first, and every clip ends whole."""
    seen: dict[int, np.ndarray] = {}
    last_ns = max(int(m.times_ns[-1]) for m in messages if len(m.times_ns))
    for message in messages:
        for t_ns, values in zip(message.times_ns, message.values, strict=True):
            seen[round((int(t_ns) - last_ns) / 1e6)] = values
    return seen


def record_rows(port: int, *arguments: str) -> dict[str, dict[int, np.ndarray]]:
    return {name: rows(messages) for name, messages in record_features(port, *arguments).items()}


@pytest.mark.long
def test_paced_and_complete_runs_have_equal_features(port: int) -> None:
    in_full = {
        name: rows(messages) for name, messages in record_features(port, "--clip", str(SAMPLE), "--fast").items()
    }
    for name, all_rows in in_full.items():
        assert len(all_rows) >= 500, f"{name}: only {len(all_rows)} rows were received"
    for _ in range(3):
        paced = record_rows(port, "--clip", str(SAMPLE))
        # What is late is dropped, and the face is then tracked from an older frame: other numbers, and rightly so.
        if all(in_full[name].keys() <= paced[name].keys() for name in in_full):
            break
    else:
        pytest.skip("this machine is too busy to play the sample at its own pace")
    for name, values in in_full.items():
        assert max(float(np.abs(values[t] - paced[name][t]).max()) for t in values) <= 1e-5, name


@pytest.mark.long
def test_run_predict_and_extract_agree_on_an_awkward_clip(port: int, tmp_path: Path) -> None:
    """Two sound tracks, the first silent, the other of opposite channels, and with more samples than time."""
    sound = np.concatenate([soxr.resample(read_sound(SAMPLE)[: 6 * 16_000], 16_000, RATE / 0.97)])
    images = [upright_bgr(picture) for t_ns, picture in open_clip(SAMPLE).pictures() if t_ns < 6e9]
    (folder := tmp_path / "clips").mkdir()
    tracks = [np.zeros(6 * RATE, np.float32), np.stack([sound, -sound]).astype(np.float32)]
    clip = write_tracks(folder / "awkward.mkv", tracks, images=images, factor=0.97)
    (folder / "labels.csv").write_text("file,emotion\nawkward.mkv,neutral\n")

    run, predictions = run_json(port, "--clip", str(clip), "--fast")
    assert "sound track 2 of 2" in predictions
    live = {p["t_end_ns"]: p for p in run}
    predicted = mien_json("predict", str(clip), "--hop", "0.2", "--json")
    assert len(predicted) == 30
    for row in predicted:
        instant = live[round(row["t_s"] * 1e9)]
        predictions = f"{instant['transcript']['committed']} {instant['transcript']['tentative']}"
        assert predictions.split() == row["words"].split(), row["t_s"]
        for emotion, share in (instant["emotions"] or {}).items():
            assert row[emotion] == pytest.approx(share, abs=1e-4), (row["t_s"], emotion)
    assert "meeting" in predicted[-1]["words"]

    mien_json("extract", str(folder), "-o", str(tmp_path / "dataset"), "--jobs", "1")
    (sample,) = read_dataset(tmp_path / "dataset").samples
    committed = {w["t_start_ns"]: w["text"].strip() for p in run for w in p["words"] if w["committed"]}
    assert (sample.labels.text or "").split() == [committed[t_ns] for t_ns in sorted(committed)]


def mien_json(*arguments: str) -> list[dict[str, Any]]:
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@contextmanager
def running(port: int, *arguments: str, stderr: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """A looping sample in the background, predicting; ended when the test is over, however it ends."""
    process = subprocess.Popen(
        command("run", "--clip", str(SAMPLE), "--loop", "--asr", "none", "--port", str(port), *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    try:
        first_prediction(port, process)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def first_prediction(port: int, process: subprocess.Popen[bytes], patience_s: float = 180) -> mien.Prediction:
    deadline_s = time.monotonic() + patience_s
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        while time.monotonic() < deadline_s:
            assert process.poll() is None, "mien ended before its first prediction"
            if predictions := subscriber.wait(0.5):
                return predictions[0]
    raise AssertionError(f"no prediction within {patience_s:.0f} s")


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a session."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_every_process_and_prints_the_summary(port: int, number: signal.Signals) -> None:
    with running(port, "--session", f"signal-{number:d}", "--json", stderr=subprocess.PIPE) as process:
        children = family(process)
        assert len(children) == 3
        process.send_signal(number)
        _, predictions = process.communicate(timeout=60)
        assert process.returncode == 0
        assert b"predictions in" in predictions
        assert b"Traceback" not in predictions
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_killed_supervisor_leaves_no_process_and_no_port_in_use(port: int) -> None:
    with running(port, "--session", "orphans") as process:
        children = family(process)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    with running(port, "--session", "orphans") as again:
        assert again.poll() is None


def test_killed_worker_is_masked_reported_and_restarted(port: int) -> None:
    with running(port, "--session", "kill", "--json", stderr=subprocess.PIPE) as process:
        stream = mien.subscribe(f"tcp://127.0.0.1:{port}", timeout_s=60)
        while next(stream).gates.get("vision", 0.0) == 0.0:
            pass
        video = next(p for p in family(process) if "video" in p.cmdline())
        video.kill()
        masked = next(p for p in stream if "vision" in p.absent)
        assert masked.gates["vision"] == 0.0
        back = next(p for p in stream if p.gates["vision"] > 0.0)
        assert back.run == masked.run, "inference itself never stopped"
        process.terminate()
        _, predictions = process.communicate(timeout=60)
    assert b"the video process died" in predictions.replace(b"\n", b" ")


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port and the process of a session that others must not disturb."""
    port = free_ports()
    with running(port, "--session", "first") as process:
        yield port, process


def test_a_second_run_on_the_same_ports_is_an_error(undisturbed: tuple[int, subprocess.Popen[bytes]]) -> None:
    port, process = undisturbed
    line = command("run", "--clip", str(SAMPLE), "--asr", "none", "--port", str(port), "--session", "second")
    second = run_program(line)
    assert second.returncode == 6
    assert "in use" in second.stderr
    assert "Traceback" not in second.stderr
    assert first_prediction(port, process).seq >= 0, "the first one continues"


def test_watch_shows_a_running_mien_as_json_lines(undisturbed: tuple[int, subprocess.Popen[bytes]]) -> None:
    port, _ = undisturbed
    watch = command("watch", f"tcp://127.0.0.1:{port}", "--json", "--count", "5", "--timeout", "60")
    ran = subprocess.run(watch, capture_output=True, text=True, timeout=90, check=True)
    seqs = [json.loads(line)["seq"] for line in ran.stdout.splitlines()]
    assert len(seqs) == 5
    assert seqs == sorted(set(seqs))


@pytest.mark.long
def test_demo_counts_its_predictions(port: int, tmp_path: Path) -> None:
    options = ("--sample", "--headless", "--seconds", "6", "--port", str(port))
    ran = run_program(command("demo", *options, "--summary", str(tmp_path / "summary.json")))
    assert ran.returncode == 0, ran.stderr
    assert "sentiment" in ran.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["predictions"] > 20
    assert {"video", "audio", "text", "inference"} <= summary["processes"].keys()
    for process in summary["processes"].values():
        assert process["rss_mb"] > 10
