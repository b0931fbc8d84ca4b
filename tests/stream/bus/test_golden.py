"""Messages written by mien 0.1 are still understood, and today's encode the same content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mien.messages import About, FeatureWindow, Prediction, Status, Transcript, Word
from mien.stream.bus.preview import Preview, decode_preview, encode_preview
from mien.stream.bus.sound import Sound, decode_sound, encode_sound
from mien.stream.bus.wire import (
    decode_about,
    decode_features,
    decode_prediction,
    decode_status,
    encode_about,
    encode_features,
    encode_prediction,
    encode_status,
)

T_NS = 1_763_000_000_000_000_000
GOLDEN: dict[str, list[bytes]] = {
    kind: [bytes.fromhex(frame) for frame in frames]
    for kind, frames in json.loads(Path(__file__).with_name("messages-0.1.json").read_text()).items()
}
WORDS = (
    Word("so", T_NS - 900_000_000, T_NS - 700_000_000),
    Word("größer", T_NS - 400_000_000, T_NS, committed=False, probability=0.5),
)
FEATURES = FeatureWindow(
    session="studio", modality="text", run=7, seq=3, t_start_ns=T_NS - 4_000_000_000, t_end_ns=T_NS,
    extractor="words-1", values=np.linspace([0.0, 0.5], [0.375, 0.875], 4, axis=1, dtype=np.float32),
    valid=np.array([True, False]), times_ns=np.array([word.t_end_ns for word in WORDS], np.int64),
    words=WORDS, stamps={"read": T_NS + 5},
)  # fmt: skip
EMOTIONS = ("neutral", "happy", "sad", "angry", "surprise", "fear", "disgust")  # in the order of that message
PREDICTION = Prediction(
    session="studio", run=9, seq=4, t_end_ns=T_NS, sentiment=1.25, sentiment_smooth=0.75,
    emotions={name: 0.4 if name == "happy" else 0.1 for name in EMOTIONS}, confidence=0.4,
    gates={"vision": 0.5, "audio": 0.5, "text": 0.0}, age_ms={"vision": 3.5, "audio": 20.0, "text": None},
    absent={"text": "no words yet"}, abstains=None, transcript=Transcript("so", "größer"), words=WORDS,
    latency={"total": 31.5}, model="cmmsf-0/onnx-fp32", inputs={"vision": ((7, 1, 2),)},
)  # fmt: skip
STATUS = Status(
    session="studio", worker="video", run=7, t_ns=T_NS, state="degraded", pid=4, fps=24.5, drops={"late": 2},
    lag_ms=3.5, last_error="größer", cpu_percent=12.5, rss_mb=250.0,
    detail={"faces": 1, "source": "0", "on": True, "lost": None}, next_seq=5,
)  # fmt: skip
ABOUT = About(
    session="studio", run=9, t_ns=T_NS, origin="live", label="camera", model="cmmsf-0/onnx-fp32",
    config={"bus": {"port": 5560}}, versions={"mien": "0.1.0"}, modalities=(),
)  # fmt: skip
PREVIEW = Preview(
    session="studio", run=7, seq=2, t_ns=T_NS, features_seq=3, width=64, height=48,
    landmarks=np.array([[0.25, 0.5], [1.0, 0.0]], np.float32), jpeg=b"\xff\xd8",
)  # fmt: skip
SOUND = Sound(session="studio", run=3, seq=4, t_start_ns=T_NS, rate_hz=16_000, pcm=b"\1\2\3\4")


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("status", encode_status(STATUS)),
        ("about", encode_about(ABOUT)),
        ("preview", encode_preview(PREVIEW, "picture")),
        ("sound", encode_sound(SOUND)),
    ],
)
def test_messages_are_byte_equal(kind: str, written: list[bytes]) -> None:
    assert [bytes(frame) for frame in written] == GOLDEN[kind]


@pytest.mark.parametrize(
    ("decode", "kind", "meant"),
    [
        (decode_status, "status", STATUS),
        (decode_about, "about", ABOUT),
        (decode_sound, "sound", SOUND),
        (decode_prediction, "prediction", PREDICTION),
    ],
)
def test_golden_messages_decode_to_their_values(decode: Callable[[list[bytes]], Any], kind: str, meant: object) -> None:
    assert decode(GOLDEN[kind]) == meant


def test_arrays_decode_unchanged() -> None:
    features, preview = decode_features(GOLDEN["features"]), decode_preview(GOLDEN["preview"])
    for name in FeatureWindow.__struct_fields__:
        np.testing.assert_array_equal(getattr(features, name), getattr(FEATURES, name), name)
    np.testing.assert_array_equal(preview.landmarks, PREVIEW.landmarks)


def test_header_of_features_is_unchanged() -> None:
    before, now = GOLDEN["features"], [bytes(frame) for frame in encode_features(FEATURES)]
    assert (now[0], now[2]) == (before[0], before[2])
    assert now[1][:1] == before[1][:1]
    assert msgspec.msgpack.decode(now[1][1:]) == msgspec.msgpack.decode(before[1][1:])


def test_a_prediction_has_gained_fields_and_lost_none() -> None:
    now, before = (json.loads(frames[2]) for frames in (encode_prediction(PREDICTION), GOLDEN["prediction"]))
    assert now.keys() - before.keys() == {"top_emotion", "t_end_us", "phrases"}
    assert now["transcript"].pop("uncertain") == ""
    assert [word.pop("uncertain") for word in now["words"]] == [False, False]
    assert {name: now[name] for name in before} == before
