"""Face and voice of one performance: joined by name, and judged by actors that nothing was trained on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mien.clock import NS_PER_S
from mien.errors import DataError
from mien.messages import EMOTIONS, ModalitySpec
from mien.models.data.datasets import Dataset, Labels, RawRows, Sample, make_track
from mien.models.training.simultaneous import TRAINING, actor_folds, join_units, judge, table

VOICE = ModalitySpec("audio", 6, 50, 250, extractor="v")


def made(tmp_path: Path) -> Dataset:
    """Twelve actors, two emotions: either modality shows it in two of three actors."""
    random = np.random.default_rng(0)
    samples, ids, units = [], [], []
    for actor in range(1, 13):
        for code, emotion in (("03", 1), ("05", 3)):
            name = f"{code}-01-01-01-{actor:02d}"
            values = random.standard_normal((100, 6)).astype(np.float32)
            values[:, emotion] += 2.0 * (actor % 3 != 0)
            rows = RawRows(values, np.ones(100, np.bool_), np.arange(100, dtype=np.int64) * (NS_PER_S // 50))
            shares = tuple(float(e == emotion) for e in range(len(EMOTIONS)))
            labels = Labels(id=f"03-01-{name}", corpus="ravdess", split="train", speaker=f"{actor:02d}",
                            emotions=shares, duration_ns=2 * NS_PER_S)  # fmt: skip
            samples.append(Sample(labels, {"audio": make_track(VOICE, rows)}))
            ids.append(f"01-01-{name}")
            units.append(np.eye(5)[emotion] * (actor % 3 != 1) + 0.3 * random.standard_normal(5))
    np.savez(tmp_path / "units.npz", ids=np.array(ids), units=np.array(units, np.float32))
    return Dataset({"audio": VOICE}, samples)


def test_voices_are_paired_with_the_face_of_the_same_performance(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    joined = join_units(dataset, tmp_path / "units.npz")
    assert len(joined.samples) == 24
    sample = joined.samples[0]
    voice, face = sample.tracks["audio"], sample.tracks["vision"]
    assert voice.values.shape == (20, 6)
    assert face.values.shape == (20, 5)
    np.testing.assert_allclose(voice.values[3], dataset.samples[0].tracks["audio"].values[15:20].mean(0), rtol=1e-5)
    with np.load(tmp_path / "units.npz") as arrays:
        np.testing.assert_allclose(face.values[7], arrays["units"][0], rtol=1e-6)


def test_no_actor_is_tested_by_a_model_that_saw_them(tmp_path: Path) -> None:
    joined = join_units(made(tmp_path), tmp_path / "units.npz")
    judged: list[str] = []
    for split, out in actor_folds(joined, 6):
        met = {s.labels.speaker for s in split.split("train")}
        assert met.isdisjoint({s.labels.speaker for s in out})
        judged += [s.labels.id for s in out]
    assert sorted(judged) == sorted(s.labels.id for s in joined.samples)
    with pytest.raises(DataError, match="folds"):
        actor_folds(joined, 13)


def test_every_decision_rule_is_evaluated_on_every_fold(tmp_path: Path) -> None:
    joined = join_units(made(tmp_path), tmp_path / "units.npz")
    model = msgspec.structs.replace(TRAINING.model, dim=8, slots=5, stages=1)
    quick = msgspec.structs.replace(TRAINING, steps=30, evaluate_every=30, batch=8, bf16=False, model=model)
    found = judge(joined, quick, 2, {"CM-MSF": {}})
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("voice", "face", "mean of both", "CM-MSF"), 2
    )
    assert "| CM-MSF |" in table(found)


def test_other_files_are_refused(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    with pytest.raises(DataError, match="action units"):
        join_units(dataset, tmp_path / "none.npz")
    np.savez(tmp_path / "others.npz", ids=np.array(["01-01-99"]), units=np.zeros((1, 5), np.float32))
    with pytest.raises(DataError, match="RAVDESS"):
        join_units(dataset, tmp_path / "others.npz")
