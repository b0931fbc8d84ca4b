"""Labels of stretches: in the table that extraction reads, next to others' rows; their rows are the recorded ones."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import numpy as np
import pytest

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import DataError
from mien.models.data.corpora import read_corpus
from mien.stream.recording.labels import LabelFile
from mien.stream.recording.reader import open_recording
from mien.stream.recording.stretch import _rows, spoken_words
from mien.stream.recording.table import zero_ns_of
from tests.stream.recording.sessions import live, messages, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "talk.mcap", live(12))


def table_of(path: Path) -> list[dict[str, str]]:
    with (path.parent / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_labels_are_rows_that_extraction_reads(path: Path) -> None:
    labels = LabelFile(path)
    assert LabelFile(path).stretches == ()
    labels.add(6, 9, emotion="sad")
    first = labels.add(1, 3.5, sentiment=2, emotion="happy", speaker="me")
    labels.add(9.5, 11, sentiment=-0.5)
    assert [stretch.start_s for stretch in labels.stretches] == [1, 6, 9.5]
    assert LabelFile(path).stretches == labels.stretches
    assert first.text.startswith("word")
    items = read_corpus(path.parent).items
    assert [(item.start_s, item.end_s, item.sentiment, item.emotion) for item in items] == [
        (1, 3.5, 2, "happy"),
        (6, 9, None, "sad"),
        (9.5, 11, -0.5, None),
    ]
    assert {item.split for item in items} == {"train", "valid"}
    assert items[0].speaker == "me"
    assert items[0].audio == items[0].video == path


def test_later_label_changes_nothing_of_earlier_ones(path: Path) -> None:
    """Neither an edited split or column, nor the split of a label that a model may have been trained on."""
    labels = LabelFile(path)
    for start in (5, 7, 9):
        labels.add(start, start + 1, sentiment=1)
    table = path.parent / "labels.csv"
    lines = table.read_text().splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == ["train", "train", "valid"]
    edited = [f"{lines[0]},note", f"{lines[1].removesuffix('train')}test,loud", *(f"{line}," for line in lines[2:])]
    table.write_text("\n".join(edited) + "\n")
    LabelFile(path).add(1, 2, sentiment=0)
    LabelFile(path).add(5, 5.5, sentiment=0)
    rows = table_of(path)
    assert [(float(row["start"]), row["split"], row["note"]) for row in rows] == [
        (1, "train", ""),
        (5, "test", ""),  # shares half a second with the next
        (5, "test", "loud"),
        (7, "train", ""),
        (9, "valid", ""),
    ]
    assert len({row["id"] for row in rows}) == len(rows)


def test_label_is_undone(path: Path) -> None:
    labels = LabelFile(path)
    stretch = labels.add(1, 3, sentiment=1)
    labels.add(4, 5, sentiment=0)
    labels.remove(stretch)
    labels.remove(stretch)
    assert [s.start_s for s in LabelFile(path).stretches] == [4]


def test_foreign_rows_and_columns_stay(path: Path) -> None:
    (path.parent / "labels.csv").write_text("file,emotion,note\nother.wav,angry,keep me\ntalk.mcap,happy,\n")
    with pytest.raises(DataError, match=r"row 3: start, end and sentiment must be numbers"):
        LabelFile(path)
    (path.parent / "labels.csv").write_text("file,emotion,note\nother.wav,angry,keep me\n")
    LabelFile(path).add(1, 2, emotion="fear")
    assert stat.S_IMODE((path.parent / "labels.csv").stat().st_mode) == 0o600, "it holds spoken words"
    rows = table_of(path)
    assert [(row["file"], row["emotion"], row["note"]) for row in rows] == [
        ("other.wav", "angry", "keep me"),
        ("talk.mcap", "fear", ""),
    ]


@pytest.mark.parametrize(
    ("stretch", "label", "message"),
    [
        ((3, 3.1), {"sentiment": 1}, "lasts 0.2 s at least"),
        ((5, 2), {"sentiment": 1}, "lasts 0.2 s at least"),
        ((400, 500), {"sentiment": 1}, "lasts 0.2 s at least"),
        ((float("nan"), 2), {"sentiment": 1}, "lasts 0.2 s at least"),
        ((1, 2), {}, "needs a sentiment or an emotion"),
        ((1, 2), {"sentiment": 4}, "not between -3 and 3"),
        ((1, 2), {"sentiment": float("nan")}, "not between -3 and 3"),
        ((1, 2), {"emotion": "bored stiff"}, "none of neutral"),
    ],
)
def test_invalid_labels_are_refused(
    path: Path, stretch: tuple[float, float], label: dict[str, object], message: str
) -> None:
    labels = LabelFile(path)
    with pytest.raises(DataError, match=message):
        labels.add(*stretch, **label)  # type: ignore[arg-type]
    assert not (path.parent / "labels.csv").exists()


def test_other_tables_are_left_alone(path: Path) -> None:
    (path.parent / "labels.csv").write_text("name,price\nmilk,1\n")
    with pytest.raises(DataError, match="not a table of labels"):
        LabelFile(path)
    assert (path.parent / "labels.csv").read_text() == "name,price\nmilk,1\n"


def test_rows_of_a_segment_equal_the_live_ones(path: Path) -> None:
    recording = open_recording(path)
    zero_ns = zero_ns_of(recording)
    start_ns, end_ns = zero_ns + 3 * NS_PER_S, zero_ns + 6 * NS_PER_S
    for name, per_second in (("vision", 25), ("audio", 50)):
        rows = _rows(recording, name, f"test-{name}", start_ns, end_ns)
        assert rows is not None
        assert len(rows.values) == 3 * per_second
        sent = [m for _, m in messages(12) if m.modality == name]
        times = np.concatenate([m.times_ns for m in sent])
        inside = (times >= start_ns) & (times < end_ns)
        np.testing.assert_array_equal(rows.values, np.concatenate([m.values for m in sent])[inside])
        np.testing.assert_array_equal(rows.times_ns, times[inside] - start_ns)
        with pytest.raises(DataError, match="were made by test-"):
            _rows(recording, name, "another", start_ns, end_ns)
    words, times_ns = spoken_words(recording, start_ns, end_ns)
    assert words == sorted(set(words), key=words.index)
    assert len(words) in (3, 4)
    assert (np.diff(times_ns) == 800 * NS_PER_MS).all()
