"""MMSA pickles: arrays come in, code does not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.errors import DataError
from mien.models.data.mmsa import read_mmsa


def part(count: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    audio = random.standard_normal((count, 20, 5)).astype(np.float32)
    audio[0, 3, 2] = -np.inf
    bert = np.zeros((count, 3, 10), np.float32)
    bert[:, 1, :6] = 1
    return {
        "raw_text": np.array([f"sentence {k}" for k in range(count)], dtype=object),
        "id": [f"clip$_${k}" for k in range(count)],
        "text": random.standard_normal((count, 10, 8)).astype(np.float32),
        "text_bert": bert,
        "audio": audio,
        "vision": random.standard_normal((count, 15, 4)),
        "audio_lengths": [20] * (count - 1) + [7],
        "vision_lengths": [15] * count,
        "annotations": ["Positive"] * count,
        "classification_labels": np.zeros(count),
        "regression_labels": np.linspace(-3, 3, count),
    }


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "mosi_unaligned_50.pkl"
    path.write_bytes(pickle.dumps({"train": part(5, 0), "valid": part(4, 1), "test": part(3, 2)}))
    return path


def test_the_documented_layout(pickled: Path) -> None:
    dataset = read_mmsa(pickled, allow_pickle=True)
    assert {n: (s.dim, s.steps) for n, s in dataset.specs.items()} == {
        "text": (8, 10), "audio": (5, 20), "vision": (4, 15)
    }  # fmt: skip
    assert [len(dataset.split(name)) for name in ("train", "valid", "test")] == [5, 4, 3]
    first, *_, last = dataset.split("train")
    assert first.labels.corpus == "mosi"
    assert first.labels.sentiment == -3
    assert first.labels.text == "sentence 0"
    assert len(first.tracks["text"].values) == 6  # BERT's own mask
    assert len(last.tracks["audio"].values) == 7  # its length
    assert first.tracks["audio"].values[3, 2] == 0  # -inf
    assert all(np.isfinite(t.values).all() for s in dataset.samples for t in s.tracks.values())


def test_it_is_read_only_if_allowed(pickled: Path) -> None:
    with pytest.raises(DataError, match="--allow-pickle"):
        read_mmsa(pickled, allow_pickle=False)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"train": Harmful(tmp_path / "ran")}))
    with pytest.raises(DataError, match="refused"):
        read_mmsa(tmp_path / "bad.pkl", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2])])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"other\.pkl"):
        read_mmsa(tmp_path / "other.pkl", allow_pickle=True)


def test_labels_out_of_range_are_listed_and_left_out(tmp_path: Path) -> None:
    broken = part(4, 0)
    broken["regression_labels"] = np.array([0.0, 3.5, np.nan, -1.0])
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": broken}))
    dataset = read_mmsa(tmp_path / "x.pkl", allow_pickle=True)
    assert [s.labels.id for s in dataset.samples] == ["clip$_$0", "clip$_$3"]
    assert [s.id for s in dataset.skipped] == ["clip$_$1", "clip$_$2"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("regression_labels", "many"),
        ("regression_labels", {}),
        ("audio", {}),
        ("audio", "loud"),
        ("audio", 1e308),
        ("audio_lengths", ["a"] * 5),
        ("audio_lengths", [7]),
        ("text_bert", [[1], [2, 3]]),
        ("id", 0),
        ("id", ""),
        ("raw_text", 5),
    ],
)
def test_a_part_of_another_kind_is_refused_and_the_file_is_named(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"train": part(5, 0) | {name: value}}))
    with pytest.raises(DataError, match=r"a\.pkl, train: "):
        read_mmsa(path, allow_pickle=True)


def test_a_part_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"train": part(5, 0), "test": 3}))
    with pytest.raises(DataError, match=r"a\.pkl, test: "):
        read_mmsa(path, allow_pickle=True)


def test_control_characters_in_a_pickles_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    name = b"\x1b[2J\nrun"
    path.write_bytes(b"\x80\x04\x8c\x02os\x8c" + bytes([len(name)]) + name + b"\x93.")
    with pytest.raises(DataError, match="refused") as caught:
        read_mmsa(path, allow_pickle=True)
    assert str(caught.value).isprintable()
