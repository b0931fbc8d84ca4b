"""Bugs that fuzzing found, each as it was found."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.errors import DataError, MienError, RecordingError, WireError
from mien.models.data.mmsa import read_mmsa
from mien.stream.bus import wire
from mien.stream.bus.keyring import parse_public
from mien.stream.recording.reader import Entry, open_recording
from tests.fuzz.seeds import seeds


class _Forged:
    """Pickles as a numpy type whose state is not of its kind; numpy builds it, and crashes when it is used."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("f4",), (3, "<", None, ("x",), {"x": (np.dtype("O"), 0)}, -1, -1, 63)


@pytest.mark.parametrize(
    "content",
    [
        {"train": {"text": _Forged(), "regression_labels": [0.0]}},
        {"train": {"text": np.zeros((1, 2, 2)), "regression_labels": [_Forged()]}},
        {"train": [1]},
        {"train": {"regression_labels": ["i\x02"], "text": np.zeros((1, 2, 2))}},
        {
            "train": {
                "regression_labels": [0.0],
                "text": np.zeros((1, 2, 2)),
                "audio_lengths": "long",
                "audio": [[["a"]]],
            }
        },
    ],
)
def test_a_forged_pickle_is_refused_in_one_line(tmp_path: Path, content: object) -> None:
    path = tmp_path / "mosi.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError) as raised:
        read_mmsa(path, allow_pickle=True)
    assert "\n" not in str(raised.value)


@pytest.mark.timeout(60)
def test_pickle_cannot_allocate_memory(tmp_path: Path) -> None:
    """An entry numbered 2^31: the unpickler in C would reserve 32 GB for those before it."""
    path = tmp_path / "mosi.pkl"
    path.write_bytes(b"\x80\x02}r\x00\x00\x00\x80X\x05\x00\x00\x00trainr\xff\xff\xff\xff}s.")
    began_s = time.process_time()
    with pytest.raises(DataError):
        read_mmsa(path, allow_pickle=True)
    assert time.process_time() - began_s < 20


def test_array_of_no_rows_but_endless_steps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mosi.pkl"
    endless = np.zeros((0, 1 << 40, 1), np.float32)
    path.write_bytes(pickle.dumps({"train": {"audio": endless, "audio_lengths": [], "regression_labels": []}}))
    with pytest.raises(DataError, match="impossible shape"):
        read_mmsa(path, allow_pickle=True)


def test_key_digits_out_of_range() -> None:
    with pytest.raises(MienError):
        parse_public("#" * 40)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seq", 10**30),
        ("run", 2**64),
        ("t_end_ns", 10**40),
        ("emotions", {}),
        ("sentiment", 1e300),
        ("latency", {"total": 1e308}),
        ("gates", {str(i): 0.0 for i in range(1000)}),
    ],
)
def test_json_numbers_out_of_range(field: str, value: object) -> None:
    """Dividing an integer of 40 digits, or drawing no emotions, ended `mien watch`."""
    import json

    _, header, payload = wire.encode_prediction(_prediction())
    changed = json.dumps(json.loads(payload) | {field: value}).encode()
    with pytest.raises(WireError):
        wire.decode_prediction([b"prediction/default/", header, changed])


def _prediction() -> Any:
    from tests.fuzz.targets import _with_topic

    return wire.decode_prediction(_with_topic(seeds()["prediction"][0], "prediction"))


def test_a_topic_that_names_another_message_is_refused() -> None:
    frames = wire.encode_prediction(_prediction())
    with pytest.raises(WireError, match="topic"):
        wire.decode_prediction([b"prediction/other/", *frames[1:]])


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 5000, b'{"session": 5}', b"\xff"])
def test_damaged_message_of_a_recording_is_a_clear_error(data: bytes) -> None:
    entry = Entry("/prediction", 0, 0, data)
    for read in (entry.prediction, entry.status, entry.features, entry.preview, entry.sound):
        with pytest.raises(RecordingError, match="damaged"):
            read()


def test_index_that_points_nowhere_is_a_clear_error(tmp_path: Path) -> None:
    """Offsets beyond 2^63 in a recording's summary: seeking there is an error of the system."""
    recording = seeds()["recording"][0]
    path = tmp_path / "cut.mcap"
    refusals = []
    for at in range(len(recording) - 700, len(recording) - 8, 3):
        path.write_bytes(recording[:at] + b"\xff" * 8 + recording[at + 8 :])
        try:
            list(open_recording(path).entries())
        except RecordingError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in refusal for refusal in refusals)
