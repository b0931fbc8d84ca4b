"""The built-in sample matches its manifest, and its face and voice are readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mien
from mien.messages import EMOTIONS
from tests.needs import need_asset

av = pytest.importorskip("av")

FOLDER = Path(mien.__file__).parent
SAMPLE = FOLDER / "sample.mp4"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "sample.json").read_text(encoding="utf-8"))
PARTS: list[dict[str, Any]] = MANIFEST["parts"]
SETTLE_S = 1.0  # until a part's expression is established


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """The sample's audio, 16 kHz, shape (n,)."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(str(SAMPLE)) as file:
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames])


@pytest.fixture(scope="module")
def blendshapes() -> dict[str, np.ndarray]:
    """Per blendshape, its value in every frame, shape (frames,)."""
    mediapipe = pytest.importorskip("mediapipe")
    tasks = mediapipe.tasks
    options = tasks.vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(need_asset("face-landmarker"))),
        output_face_blendshapes=True,
        running_mode=tasks.vision.RunningMode.VIDEO,
    )
    rows = []
    with tasks.vision.FaceLandmarker.create_from_options(options) as landmarker, av.open(str(SAMPLE)) as file:
        for frame in file.decode(video=0):
            image = mediapipe.Image(mediapipe.ImageFormat.SRGB, frame.to_ndarray(format="rgb24"))
            found = landmarker.detect_for_video(image, round(frame.time * 1000)).face_blendshapes
            assert found, f"no face at {frame.time} s"
            rows.append({category.category_name: category.score for category in found[0]})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def mean_in(track: np.ndarray, emotion: str) -> float:
    part = next(part for part in PARTS if part["emotion"] == emotion)
    fps = MANIFEST["fps"]
    return float(track[round((part["start_s"] + SETTLE_S) * fps) : round(part["end_s"] * fps)].mean())


def test_file_is_small_and_has_video_and_audio() -> None:
    assert SAMPLE.stat().st_size <= 1_000_000
    with av.open(str(SAMPLE)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.width, video.height) == (MANIFEST["width"], MANIFEST["height"])
        assert float(video.average_rate) == MANIFEST["fps"]
        for stream in (video, audio):
            assert float(stream.duration * stream.time_base) == pytest.approx(MANIFEST["duration_s"], abs=0.1)
        assert len(list(file.decode(video=0))) == round(MANIFEST["duration_s"] * MANIFEST["fps"])
    assert 15 <= MANIFEST["duration_s"] <= 25


def test_opencv_reads_the_picture() -> None:
    cv2 = pytest.importorskip("cv2")
    capture = cv2.VideoCapture(str(SAMPLE))
    try:
        read, image = capture.read()
    finally:
        capture.release()
    assert read
    assert image.shape == (MANIFEST["height"], MANIFEST["width"], 3)


def test_parts_are_consecutive_and_differ() -> None:
    assert [part["start_s"] for part in PARTS] == [0.0, *(part["end_s"] for part in PARTS[:-1])]
    assert PARTS[-1]["end_s"] == MANIFEST["duration_s"]
    emotions = [part["emotion"] for part in PARTS]
    assert len(set(emotions)) == len(emotions) >= 3
    assert set(emotions) <= set(EMOTIONS)
    assert {part["sentiment_sign"] for part in PARTS} == {-1, 0, 1}


def test_tone_differs_between_parts(sound: np.ndarray) -> None:
    """Joy and anger are loud, sadness is quiet."""
    level = {
        part["emotion"]: np.sqrt(np.mean(sound[int(part["start_s"] * 16_000) : int(part["end_s"] * 16_000)] ** 2))
        for part in PARTS
    }
    assert level["sad"] < 0.75 * level["neutral"]
    assert level["happy"] > level["neutral"]
    assert level["angry"] > level["neutral"]


@pytest.mark.assets
def test_face_shows_what_the_manifest_says(blendshapes: dict[str, np.ndarray]) -> None:
    smile = blendshapes["mouthSmileLeft"] + blendshapes["mouthSmileRight"]
    frown = blendshapes["mouthFrownLeft"] + blendshapes["mouthFrownRight"]
    squint = blendshapes["eyeSquintLeft"] + blendshapes["eyeSquintRight"]
    assert mean_in(smile, "happy") > mean_in(smile, "neutral") + 0.8
    assert mean_in(smile, "sad") < 0.2
    assert mean_in(frown, "sad") > mean_in(frown, "neutral") + 0.05
    assert mean_in(blendshapes["browInnerUp"], "sad") > mean_in(blendshapes["browInnerUp"], "neutral") + 0.1
    assert mean_in(squint, "angry") > mean_in(squint, "neutral") + 0.4
    blinks = np.diff((blendshapes["eyeBlinkLeft"] > 0.4).astype(int)) == 1
    assert blinks.sum() >= 4


@pytest.mark.assets
def test_mouth_moves_with_the_voice(blendshapes: dict[str, np.ndarray], sound: np.ndarray) -> None:
    frames, hop = len(blendshapes["jawOpen"]), 16_000 // MANIFEST["fps"]
    loudness = np.sqrt(np.mean(sound[: frames * hop].reshape(frames, hop) ** 2, axis=1))
    opening = blendshapes["jawOpen"] + blendshapes["mouthLowerDownLeft"]
    for part in PARTS:
        span = slice(round((part["start_s"] + SETTLE_S) * MANIFEST["fps"]), round(part["end_s"] * MANIFEST["fps"]))
        assert np.corrcoef(opening[span], loudness[span])[0, 1] > 0.4, part["emotion"]


@pytest.mark.assets
def test_voice_is_understood(sound: np.ndarray) -> None:
    faster_whisper = pytest.importorskip("faster_whisper")
    jiwer = pytest.importorskip("jiwer")
    folder = need_asset("whisper-tiny.en")
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)
    recognised = " ".join(segment.text for segment in model.transcribe(sound, beam_size=1)[0])
    spoken = " ".join(part["sentence"] for part in PARTS)

    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").strip()

    assert jiwer.wer(plain(spoken), " ".join(plain(recognised).split())) <= 0.05
