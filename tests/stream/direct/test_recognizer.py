"""A Recognizer reproduces the stream's numbers for any order, chunking and threads of its input."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

import mien
from mien import Frame, InputError, Prediction, Recognizer, Sound
from mien.clock import NS_PER_S
from mien.install import SAMPLE
from mien.messages import FeatureWindow
from mien.stream.inference.prediction import Trigger
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import SAMPLE_RATE, Chunk
from mien.stream.sources.source import Frame as SourceFrame

pytestmark = pytest.mark.assets
SECONDS = 3.0


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """The first seconds of the sample's video."""
    made = []
    for t_ns, frame in open_clip(SAMPLE).pictures():
        if t_ns >= SECONDS * NS_PER_S:
            break
        made.append(Frame(upright_bgr(frame), t_ns / NS_PER_S))
    return made


@pytest.fixture(scope="module")
def sound() -> Sound:
    """The first seconds of the sample's audio."""
    return Sound(read_sound(SAMPLE)[: round(SECONDS * SAMPLE_RATE)], SAMPLE_RATE, 0.0)


def pieces_of(sound: Sound, seed: int = 0) -> list[Sound]:
    """The same audio in chunks of odd lengths."""
    chance, at, pieces = random.Random(seed), 0, []
    while at < len(sound.samples):
        size = chance.randrange(1, 3000)
        pieces.append(Sound(sound.samples[at : at + size], sound.rate, at / sound.rate))
        at += size
    return pieces


def mixed(frames: list[Frame], sound: Sound, seed: int) -> list[Frame | Sound]:
    """All of it, up to 0.2 s out of order."""
    chance = random.Random(seed)
    return sorted([*frames, *pieces_of(sound, seed)], key=lambda item: item.t + chance.uniform(0, 0.2))


@pytest.fixture(scope="module")
def expected(frames: list[Frame], sound: Sound) -> list[Prediction]:
    """The predictions for it, pushed in order."""
    items: list[Frame | Sound] = sorted([*frames, *pieces_of(sound)], key=lambda item: item.t)
    with Recognizer(engine="onnx") as recognizer:
        return list(recognizer.every(items))


def numbers(prediction: Prediction) -> list[float]:
    emotions = prediction.emotions or {}
    said = (prediction.sentiment, prediction.sentiment_smooth, prediction.confidence)
    return [np.nan if each is None else each for each in (*said, *emotions.values(), *prediction.gates.values())]


def assert_same(made: list[Prediction], expected: list[Prediction]) -> None:
    assert [each.t_end_ns for each in made] == [each.t_end_ns for each in expected]
    assert [each.transcript for each in made] == [each.transcript for each in expected]
    assert [each.absent for each in made] == [each.absent for each in expected]
    for ours, theirs in zip(made, expected, strict=True):
        np.testing.assert_allclose(numbers(ours), numbers(theirs), atol=1e-6)


def test_order_and_pieces_make_no_difference(frames: list[Frame], sound: Sound, expected: list[Prediction]) -> None:
    assert len(expected) > SECONDS * 20
    assert any(each.transcript.committed for each in expected)
    with Recognizer(engine="onnx") as recognizer:
        assert_same(list(recognizer.every(mixed(frames, sound, 7))), expected)


def test_stream_in_an_event_loop(frames: list[Frame], sound: Sound, expected: list[Prediction]) -> None:
    async def inputs() -> AsyncIterator[Frame | Sound]:
        for item in mixed(frames, sound, 8):
            yield item

    async def run() -> list[Prediction]:
        with Recognizer(engine="onnx") as recognizer:
            return [prediction async for prediction in recognizer.stream(inputs())]

    assert_same(asyncio.run(run()), expected)


def test_predictions_on_demand_equal_the_stream(frames: list[Frame], sound: Sound, expected: list[Prediction]) -> None:
    waiting: Iterator[Sound] = iter(pieces_of(sound, 5))
    given_s = 0.0
    made, theirs = [], {each.t_end_ns: each for each in expected[:-1]}
    with Recognizer(engine="onnx") as recognizer:
        for frame in frames:
            while given_s < min(frame.t + 0.2, SECONDS):  # an instant is predicted once the sound around it is there
                piece = next(waiting)
                recognizer.sound(*piece)
                given_s = piece.t + len(piece.samples) / piece.rate
            recognizer.frame(*frame)
            made.append(recognizer.predict(frame.t))
    for each in made:
        other = theirs[each.t_end_ns]
        assert each.transcript == other.transcript
        raw = [*numbers(each)[:1], *numbers(each)[2:]]
        np.testing.assert_allclose(raw, [*numbers(other)[:1], *numbers(other)[2:]], atol=1e-6)


def test_many_threads_lose_nothing(frames: list[Frame], sound: Sound, expected: list[Prediction]) -> None:
    """Two threads push frames, one audio, and two predict concurrently; the end equals the single-threaded case."""
    failures: list[BaseException] = []
    late: list[str] = []
    turn = threading.Barrier(3)
    done = threading.Event()
    sounds = pieces_of(sound, 6)

    with Recognizer(engine="onnx", asr="none") as recognizer:

        def give(first: int) -> None:
            try:
                for number in range(0, len(frames), 2):
                    turn.wait(60)
                    if first < 2 and number + first < len(frames):
                        frame = frames[number + first]
                        try:
                            recognizer.frame(*frame)
                        except InputError as error:  # a later instant was predicted already
                            late.append(str(error))
                    elif first == 2:
                        while sounds and sounds[0].t <= frames[number].t:
                            recognizer.sound(*sounds.pop(0))
            except BaseException as error:
                failures.append(error)
                turn.abort()

        def predict() -> None:
            last_ns = 0
            while not done.is_set():
                try:
                    prediction = recognizer.predict(wait=False)
                except InputError as error:
                    if "nothing to predict from yet" in str(error):
                        continue
                    failures.append(error)
                    return
                if prediction.t_end_ns < last_ns:
                    failures.append(AssertionError("time goes back"))
                last_ns = prediction.t_end_ns

        givers = [threading.Thread(target=give, args=(first,)) for first in range(3)]
        predictors = [threading.Thread(target=predict) for _ in range(2)]
        for thread in (*givers, *predictors):
            thread.start()
        for thread in givers:
            thread.join(120)
        done.set()
        for thread in predictors:
            thread.join(60)
        assert failures == []
        assert all("came after" in why for why in late)
        assert len(late) < len(frames) / 2
        for piece in sounds:
            recognizer.sound(*piece)
        recognizer.finish()
        last = recognizer.predict()
        assert last.t_end_ns == expected[-1].t_end_ns
        assert last.gates["vision"] > 0
        assert last.gates["audio"] > 0


def test_modalities_without_input_are_absent(frames: list[Frame]) -> None:
    with Recognizer(audio=False, engine="onnx") as recognizer:
        with pytest.raises(InputError, match="nothing to predict from yet"):
            recognizer.predict()
        with pytest.raises(InputError, match="audio=False"):
            recognizer.sound(np.zeros(100, np.float32), 16_000, 0.0)
        for frame in frames[:30]:
            recognizer.frame(*frame)
        prediction = recognizer.predict()
        assert prediction.absent == {"audio": "switched off", "text": "switched off"}
        assert prediction.gates["vision"] == pytest.approx(1.0)
        with pytest.raises(InputError, match="which was already predicted"):
            recognizer.predict(frames[5].t)
        recognizer.frame(frames[0].bgr, 100.0)
        with pytest.raises(InputError, match="too long before the newest"):
            recognizer.predict(frames[30].t)
        for wrong in (-1.0, float("nan"), "soon", 1e300):
            with pytest.raises(InputError, match="a time is a number of seconds"):
                recognizer.frame(frames[0].bgr, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="closed"):
        recognizer.predict()


def test_stream_reports_which_input_it_waits_for(frames: list[Frame]) -> None:
    far = [Frame(frame.bgr, 0.5 * number) for number, frame in enumerate(frames)]
    with (
        Recognizer(engine="onnx", asr="none") as recognizer,
        pytest.raises(InputError, match=r"10 s without sound up to 10\.500 s.*audio=False"),
    ):
        list(recognizer.every(far))


def test_times_may_be_those_of_a_clock(frames: list[Frame]) -> None:
    """Rows lie on the model's time axis by whole tenths of a second; Unix times change nothing else."""
    base_s = 1_790_000_000.0
    answers = []
    for begin_s in (0.0, base_s):
        with Recognizer(audio=False, engine="onnx") as recognizer:
            for number, frame in enumerate(frames[:50]):
                recognizer.frame(frame.bgr, begin_s + 0.01 + 0.04 * number)
            answers.append(numbers(recognizer.predict()))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-3)


def test_a_picture_and_arrays(frames: list[Frame], sound: Sound, tmp_path: Path) -> None:
    import cv2

    (one,) = mien.analyze(frames[20].bgr, engine="onnx").predictions
    path = tmp_path / "Gesicht ä.png"
    path.write_bytes(cv2.imencode(".png", frames[20].bgr)[1].tobytes())
    (same,) = mien.analyze(path, engine="onnx").predictions
    assert numbers(one) == numbers(same)
    assert one.gates["vision"] == pytest.approx(1.0)
    said = mien.analyze(sound.samples, rate=SAMPLE_RATE, engine="onnx", asr="none").predictions
    assert said[-1].gates["audio"] == pytest.approx(1.0)
    seen = mien.analyze(np.stack([frame.bgr for frame in frames[:10]]), fps=25.0, engine="onnx").predictions
    assert len(seen) == 11
    for wrong, why in ((frames[0].bgr[:, :, 0], "rate"), (np.zeros((2, 8, 8, 3), np.uint8), "fps"), (7, "not int")):
        with pytest.raises(InputError, match=why):
            mien.analyze(wrong)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(mien.SourceError, match=r"no\.png cannot be read"):
        mien.analyze(tmp_path / "no.png")
    with pytest.raises(mien.SourceError, match="does not exist"):
        mien.analyze(tmp_path / "missing.mp4")


def test_program_ends_without_close() -> None:
    script = (
        "import numpy, mien\n"
        "recognizer = mien.Recognizer(audio=False, engine='onnx')\n"
        "recognizer.frame(numpy.zeros((240, 320, 3), numpy.uint8), 0.0)\n"
        "print(recognizer.predict().abstains)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (0, "no face, no voice and no words in the window\n"), ran.stderr


@pytest.mark.parametrize("on_demand", [True, False], ids=["predicting", "giving alone"])
def test_buffers_are_bounded(on_demand: bool) -> None:
    """Half a minute of frames and audio; only what a window and input sorting need is kept."""
    picture = np.zeros((120, 160, 3), np.uint8)
    sound = np.random.default_rng(1).normal(0, 0.01, SAMPLE_RATE // 5).astype(np.float32)
    counts = []
    with Recognizer(engine="onnx", asr="none") as recognizer:
        for fifth in range(150):
            recognizer.sound(sound, SAMPLE_RATE, fifth / 5)
            for frame in range(5):
                recognizer.frame(picture, fifth / 5 + frame / 25)
            if on_demand:
                recognizer.predict()
            if fifth in (60, 149):
                gc.collect()
                kinds = (FeatureWindow, Trigger, SourceFrame, Chunk)
                found = [type(each) for each in gc.get_objects()]
                counts.append([sum(each is kind for each in found) for kind in kinds])
    for early, late in zip(*counts, strict=True):
        assert late <= early + 64


@pytest.mark.long
@pytest.mark.timeout(420)
def test_memory_is_constant_over_minutes() -> None:
    """In a separate process; five minutes here, ten by default."""
    script = Path(__file__).parents[3] / "scripts" / "recognizer_memory.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--minutes", "5"], capture_output=True, text=True, timeout=400, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
