"""The wire format: encoding round-trips, and protocol violations are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mien.errors import WireError
from mien.messages import FeatureWindow, Phrase, Prediction, Status, Transcript, Word
from mien.stream.bus import wire
from mien.stream.bus.limits import MAX_TIME_NS, NAME


def features(rows: int = 3, dim: int = 4, **changes: object) -> FeatureWindow:
    """A features message with evenly spaced rows."""
    window = FeatureWindow(
        session="default",
        modality="vision",
        run=7,
        seq=2,
        t_start_ns=1_000_000_000,
        t_end_ns=1_300_000_000,
        extractor="faces-1",
        values=np.arange(rows * dim, dtype=np.float32).reshape(rows, dim),
        valid=np.arange(rows) % 2 == 0,
        times_ns=wire.even_times_ns(1_000_000_000, 1_300_000_000, rows),
        words=(Word("hello", 1_000_000_000, 1_200_000_000, committed=False, probability=0.5),),
        phrases=(Phrase(1_000_000_000, 1_200_000_000, -1.25, "sad"),),
        reason="unclear",
        stamps={"read": 1_310_000_000},
        counts_from_ns=1_800_000_000,
    )
    return msgspec.structs.replace(window, **changes)


PREDICTION = Prediction(
    session="default",
    run=1,
    seq=5,
    t_end_ns=10,
    sentiment=-1.25,
    sentiment_smooth=-1.0,
    emotions={"sad": 0.75, "neutral": 0.25},
    confidence=0.75,
    gates={"vision": 0.5, "audio": 0.5, "text": 0.0},
    age_ms={"vision": 3.0, "audio": 20.0, "text": None},
    absent={"text": "switched off"},
    transcript=Transcript("it is", "over"),
    phrases=(Phrase(3, 8, -2.5, "sad"),),
)
FOLLOWING = ("top_emotion", "t_end_us")
STATUS = Status(session="default", worker="video", run=1, t_ns=3, state="running", pid=1, drops={"late": 2})


def assert_equal(left: FeatureWindow, right: FeatureWindow) -> None:
    for field in left.__struct_fields__:
        a, b = getattr(left, field), getattr(right, field)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
        elements=st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32),
    ),
    st.data(),
)
def test_features_round_trip(values: np.ndarray, data: st.DataObject) -> None:
    rows = len(values)
    offsets_us = data.draw(st.lists(st.integers(0, 300_000), min_size=rows, max_size=rows))
    sent = features(
        rows,
        values=values,
        valid=np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))),
        times_ns=1_000_000_000 + np.array(sorted(offsets_us), np.int64) * 1000,
        words=tuple(
            Word(str(i), i, i + 1, uncertain=uncertain)
            for i, uncertain in enumerate(data.draw(st.lists(st.booleans(), max_size=20)))
        ),
    )
    assert_equal(wire.decode_features(wire.encode_features(sent)), sent)


def test_features_without_rows_round_trip() -> None:
    sent = features(0, words=())
    assert_equal(wire.decode_features(wire.encode_features(sent)), sent)


def test_evenly_spaced_rows_need_no_times_on_the_wire() -> None:
    header = msgspec.msgpack.decode(wire.encode_features(features())[1][1:])
    assert "offsets_us" not in header


def test_predictions_and_statuses_round_trip() -> None:
    assert wire.decode_prediction(wire.encode_prediction(PREDICTION)) == PREDICTION
    assert wire.decode_status(wire.encode_status(STATUS)) == STATUS


def test_topics_of_sessions_are_no_prefix_of_each_other() -> None:
    assert not wire.topic("prediction", "default2").startswith(wire.topic("prediction", "default"))


def reframed(**header_changes: object) -> list[bytes]:
    """A features message with some header fields replaced."""
    topic, header, payload = wire.encode_features(features())
    fields = msgspec.msgpack.decode(header[1:]) | header_changes
    return [topic, wire.VERSION_BYTE + msgspec.msgpack.encode(fields), payload]


GOOD = wire.encode_features(features())


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        (GOOD[:2], "malformed"),
        ([*GOOD, b""], "malformed"),
        ([GOOD[0], b"", GOOD[2]], "malformed"),
        ([GOOD[0], b"\x02" + GOOD[1][1:], GOOD[2]], "version"),
        ([GOOD[0], GOOD[1][:-3], GOOD[2]], "malformed"),
        ([GOOD[0], GOOD[1], GOOD[2][:-1]], "truncated"),
        ([GOOD[0], GOOD[1], GOOD[2] + b"\0\0\0\0"], "truncated"),
        ([GOOD[0], GOOD[1], b"\0" * (wire.MAX_PAYLOAD_BYTES + 4)], "oversized"),
        ([GOOD[0], GOOD[1], np.full(12, np.nan, "<f4").tobytes()], "nonfinite"),
        ([GOOD[0], GOOD[1], np.full(12, np.inf, "<f4").tobytes()], "nonfinite"),
        (reframed(rows=1 << 40), "oversized"),
        (reframed(rows=-1), "oversized"),
        (reframed(dim=0), "oversized"),
        (reframed(rows=2), "truncated"),
        (reframed(valid=b""), "truncated"),
        (reframed(seq=-1), "malformed"),
        (reframed(seq=1 << 53), "malformed"),
        (reframed(run=-1), "malformed"),
        (reframed(run=1 << 53), "malformed"),
        (reframed(t_start_ns=-1), "time"),
        (reframed(t_start_ns=1_300_000_001), "time"),
        (reframed(t_end_ns=MAX_TIME_NS + 1), "time"),
        (reframed(stamps={"read": MAX_TIME_NS + 1}), "time"),
        (reframed(phrases=[(5, 3, 0.0, "sad")]), "time"),
        (reframed(phrases=[(3, 5, float("nan"), "sad")]), "malformed"),
        (reframed(phrases=[(3, 5, 3.5, "sad")]), "malformed"),
        (reframed(phrases=[(3, 5, 0.0, "s" * 65)]), "oversized"),
        (reframed(phrases=[(3, 5, 0.0, "sad")] * 65), "oversized"),
        (reframed(seq="2"), "malformed"),
        (reframed(session="../../etc"), "malformed"),
        (reframed(session="a" * 65), "malformed"),
        (reframed(modality=""), "malformed"),
        (reframed(t_start_ns=2_000_000_000), "time"),
        (reframed(t_end_ns=(1 << 63) - 1), "time"),
        (reframed(t_end_ns=(1 << 64) - 1), "time"),
        (reframed(t_start_ns=-5), "time"),
        (reframed(stamps={"read": -1}), "time"),
        (reframed(offsets_us=[1]), "truncated"),
        (reframed(offsets_us=[0, 1, 1 << 60]), "time"),
        (reframed(words=[["a", 5, 4, True, 1.0]]), "time"),
        (reframed(words=[["a", 4, 5, True, 1.5]]), "malformed"),
        (reframed(words=[["a", 4, 5, True, float("nan")]]), "malformed"),
        (reframed(words=[["a", 4, 5, True, 1.0]], uncertain=b"aa"), "truncated"),
        (reframed(reason="a" * 257), "oversized"),
        (reframed(counts_from_ns=1_299_999_999), "time"),
        (reframed(counts_from_ns=6_300_000_001), "time"),
        (reframed(counts_from_ns=-1), "time"),
        (reframed(words=[["a" * 129, 4, 5, True, 1.0]]), "oversized"),
        (reframed(words=[["a", 4, 5, True, 1.0]] * 513), "oversized"),
        (reframed(extractor="x" * 257), "oversized"),
    ],
)
def test_invalid_features_are_refused_with_the_cause(frames: list[bytes], cause: str) -> None:
    with pytest.raises(WireError, match=f"^{cause}:"):
        wire.decode_features(frames)


@pytest.mark.parametrize("position", range(12))
def test_only_finite_features_are_accepted(position: int) -> None:
    largest = np.finfo("<f4").max
    for value in (-np.inf, np.inf, np.nan, -largest, largest, np.finfo("<f4").smallest_subnormal):
        values = np.full(12, largest, "<f4")
        values[position] = value
        frames = [*GOOD[:2], values.tobytes()]
        if np.isfinite(value):
            assert wire.decode_features(frames).values.tobytes() == frames[2]
        else:
            with pytest.raises(WireError, match=r"^nonfinite:"):
                wire.decode_features(frames)


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_random_bytes_are_refused(frames: list[bytes]) -> None:
    for decode in (wire.decode_features, wire.decode_prediction, wire.decode_status):
        with pytest.raises(WireError):
            decode(frames)


@given(st.integers(0, len(GOOD[1]) - 1), st.integers(0, 255))
def test_flipped_header_byte_is_refused_or_well_formed(position: int, value: int) -> None:
    header = bytearray(GOOD[1])
    header[position] = value
    try:
        window = wire.decode_features([GOOD[0], bytes(header), GOOD[2]])
    except WireError:
        return
    rows, dim = window.values.shape
    assert rows * dim * 4 == len(GOOD[2])
    assert len(window.valid) == len(window.times_ns) == rows
    assert NAME.fullmatch(window.session)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[]", b'{"session": 5}', b"\xff\xfe", b'{"session":"a/b"}', b"[" * 9999]
)
def test_invalid_prediction_json_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_prediction([b"prediction/default/", wire.VERSION_BYTE, payload])


def test_json_has_derived_fields() -> None:
    exact_ns = 1_764_164_223_123_456_789
    topic, header, payload = wire.encode_prediction(msgspec.structs.replace(PREDICTION, t_end_ns=exact_ns))
    fields = json.loads(payload)
    assert (fields["top_emotion"], fields["t_end_us"]) == ("sad", exact_ns // 1000)
    assert fields["t_end_us"] < 2**53 < fields["t_end_ns"]
    # Derived fields of a message are ignored, also if they are missing as in older versions.
    for forged in (
        fields | {"top_emotion": "happy", "t_end_us": 5},
        {k: fields[k] for k in fields if k not in FOLLOWING},
    ):
        got = wire.decode_prediction([topic, header, json.dumps(forged).encode()])
        assert (got.top_emotion, got.t_end_us) == ("sad", exact_ns // 1000)
    assert (
        json.loads(wire.encode_prediction(msgspec.structs.replace(PREDICTION, emotions=None))[2])["top_emotion"] is None
    )


def test_fields_of_a_later_version_are_ignored() -> None:
    topic, header, payload = wire.encode_prediction(PREDICTION)
    later = json.dumps(json.loads(payload) | {"arousal": 0.5}).encode()
    assert wire.decode_prediction([topic, header, later]) == PREDICTION
    assert_equal(wire.decode_features(reframed(colour="blue")), features())


def test_messages_follow_the_published_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(wire.json_schema())
    for frames in (wire.encode_prediction(PREDICTION), wire.encode_status(STATUS)):
        validator.validate(json.loads(frames[2]))
    broken = json.loads(wire.encode_prediction(PREDICTION)[2]) | {"sentiment": "good"}
    assert not validator.is_valid(broken)


def test_published_schema_matches_the_types() -> None:
    published = Path(__file__).resolve().parents[3] / "docs" / "messages.schema.json"
    current = json.loads(json.dumps(wire.json_schema()))
    assert json.loads(published.read_text()) == current, "run: mien schema > docs/messages.schema.json"
