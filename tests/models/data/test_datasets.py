"""Datasets are whole or not there, and a sample's window is what the live assembler would make of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.data.dataset_files import PLAN, finish_dataset, is_dataset, read_dataset, read_shard, write_shard
from mien.models.data.datasets import (
    Labels,
    RawRows,
    Sample,
    join_datasets,
    make_statistics,
    make_track,
    window,
    word_times_ns,
)
from mien.models.data.labels import Skipped
from mien.windowing import place_rows

VISION = ModalitySpec("vision", 3, 10, 50, extractor="v-1")
TEXT = ModalitySpec("text", 2, 0, 50, snapshot=True, extractor="t-1")
SPECS = {"vision": VISION, "text": TEXT}


def frames(count: int, fps: float = 30.0, seed: int = 0) -> RawRows:
    random = np.random.default_rng(seed)
    times = (np.arange(count) * NS_PER_S / fps).astype(np.int64)
    return RawRows(random.standard_normal((count, 3)).astype(np.float32), random.random(count) < 0.8, times)


def words(count: int, duration_ns: int = 0) -> RawRows:
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return RawRows(values, np.ones(count, np.bool_), word_times_ns(count, duration_ns))


def write(folder: Path, *shards: list[tuple[Labels, dict[str, RawRows]]]) -> None:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"shard-{k:05d}.safetensors" for k in range(len(shards))]
    for path, items in zip(paths, shards, strict=True):
        write_shard(path, SPECS, items, [Skipped("gone", "clip missing")] if path is paths[0] else [])
    finish_dataset(folder, SPECS, paths)


@pytest.mark.parametrize("fps", [10.0, 15.0, 29.97, 60.0])
@pytest.mark.parametrize("end_ms", [40, 1234, 5000, 7777, 9000])
def test_window_equals_that_of_the_assembler(fps: float, end_ms: int) -> None:
    rows = frames(int(fps * 8), fps)
    sample = Sample(Labels(id="a", corpus="c", duration_ns=8 * NS_PER_S), {"vision": make_track(VISION, rows)})
    now = rows.times_ns <= end_ms * NS_PER_MS  # rows of the last slot that are yet to come are not there live
    end_ns = int(rows.times_ns[now][-1])
    expected = place_rows(VISION, rows.values[now], rows.valid[now], rows.times_ns[now], end_ns)
    through = rows.times_ns // (100 * NS_PER_MS) <= end_ns // (100 * NS_PER_MS)
    if through.sum() == now.sum():
        for mine, live in zip(window(sample, VISION, end_ns), expected, strict=True):
            np.testing.assert_allclose(mine, live, rtol=1e-6, atol=1e-6)


def test_words_match_the_assembler() -> None:
    rows = words(60, 6 * NS_PER_S)
    sample = Sample(Labels(id="a", corpus="c", duration_ns=6 * NS_PER_S), {"text": make_track(TEXT, rows)})
    for mine, live in zip(
        window(sample, TEXT, 6 * NS_PER_S),
        place_rows(TEXT, rows.values, rows.valid, rows.times_ns, 6 * NS_PER_S),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, live)
    assert window(sample, TEXT, 3 * NS_PER_S, 2 * NS_PER_S)[1].sum() == 11  # both ends count


def test_a_still_fills_its_window() -> None:
    row = RawRows(np.ones((1, 3), np.float32), np.ones(1, np.bool_), np.zeros(1, np.int64))
    sample = Sample(Labels(id="a", corpus="c", still=True), {"vision": make_track(VISION, row)})
    features, mask = window(sample, VISION, 0)
    assert mask.all()
    assert (features == 1).all()


def test_rows_before_the_start_are_ignored() -> None:
    rows = frames(80, 10.0)
    sample = Sample(Labels(id="a", corpus="c", duration_ns=8 * NS_PER_S), {"vision": make_track(VISION, rows)})
    mask = window(sample, VISION, 7 * NS_PER_S, 6 * NS_PER_S)[1]
    assert mask[:-11].sum() == 0
    assert mask[-11:].sum() == rows.valid[60:71].sum()


def test_round_trip(tmp_path: Path) -> None:
    first = (
        Labels(id="a", corpus="c", split="train", sentiment=-1.5, duration_ns=9, text="so sad"),
        {"text": words(2), "vision": frames(4, 10.0)},
    )
    second = (Labels(id="b", corpus="c", split="valid", emotions=(0, 1, 0, 0, 0, 0, 0)), {"vision": frames(0)})
    write(tmp_path, [first], [second])
    dataset = read_dataset(tmp_path)
    assert [s.labels for s in dataset.samples] == [first[0], second[0]]
    assert dataset.specs == SPECS
    assert dataset.skipped == [Skipped("gone", "clip missing")]
    assert dataset.samples[1].tracks.keys() == {"vision"}
    assert dataset.samples[1].emotion == 1
    np.testing.assert_array_equal(dataset.samples[0].tracks["text"].values, first[1]["text"].values)


def test_rows_of_a_dataset_are_not_copied_to_memory(tmp_path: Path) -> None:
    seen, said = frames(50, 10), words(4)
    write(tmp_path, [(Labels(id="a", corpus="c", split="train"), {"vision": seen, "text": said})])
    (sample,) = read_dataset(tmp_path).samples
    for name, rows in (("vision", seen), ("text", said)):
        values = sample.tracks[name].values
        np.testing.assert_array_equal(values, rows.values * rows.valid[:, None])
        assert not values.flags.owndata
        assert not values.flags.writeable  # mapped


def test_statistics_are_of_valid_training_rows(tmp_path: Path) -> None:
    train = frames(40, 10.0)
    other = RawRows(frames(40).values + 100, np.ones(40, np.bool_), frames(40).times_ns)
    write(tmp_path, [(Labels(id="a", corpus="c", split="train"), {"vision": train}),
                     (Labels(id="b", corpus="c", split="valid"), {"vision": other})])  # fmt: skip
    from mien.models.data.dataset_files import read_manifest

    statistics = read_manifest(tmp_path).statistics["vision"]
    np.testing.assert_allclose(statistics.mean, train.values[train.valid].mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, train.values[train.valid].std(0), rtol=1e-5)
    again = make_statistics(read_dataset(tmp_path).split("train"), SPECS)["vision"]
    np.testing.assert_allclose(again.mean, statistics.mean, rtol=1e-6)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mien extract"):
        read_dataset(tmp_path)
    (tmp_path / PLAN).write_text("{}")
    assert is_dataset(tmp_path)
    with pytest.raises(DataError, match="half extracted"):
        read_dataset(tmp_path)


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [(Labels(id="a", corpus="c"), {"vision": frames(4)})])
    shard = tmp_path / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_never_written(tmp_path: Path, bad: float) -> None:
    rows = frames(4)
    rows.values[2, 1] = bad
    with pytest.raises(DataError, match="not finite"):
        write_shard(tmp_path / "s.safetensors", SPECS, [(Labels(id="a", corpus="c"), {"vision": rows})])
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_wrong_width_are_never_written(tmp_path: Path) -> None:
    rows = RawRows(np.zeros((4, 5), np.float32), np.ones(4, np.bool_), np.zeros(4, np.int64))
    with pytest.raises(DataError, match=r"not \(n, 3\)"):
        write_shard(tmp_path / "s.safetensors", SPECS, [(Labels(id="a", corpus="c"), {"vision": rows})])


def test_datasets_of_other_extractors_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path, [(Labels(id="a", corpus="c"), {"vision": frames(4)})])
    one, other = read_dataset(tmp_path), read_dataset(tmp_path)
    assert len(join_datasets([one, other]).samples) == 2
    other.specs["vision"] = ModalitySpec("vision", 3, 10, 50, extractor="v-2")
    with pytest.raises(DataError, match="v-1 and v-2"):
        join_datasets([one, other])


def test_a_shard_tells_absent_from_empty(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.safetensors", SPECS, [(Labels(id="a", corpus="c"), {"text": words(0)})])
    items, _ = read_shard(tmp_path / "s.safetensors", SPECS.values())
    assert items[0][1].keys() == {"text"}
    assert len(items[0][1]["text"].values) == 0
