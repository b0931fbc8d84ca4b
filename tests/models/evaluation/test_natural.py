"""People who just talk: what is counted, and when."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mien.clock import NS_PER_S
from mien.messages import EMOTIONS, Float32
from mien.models.data.datasets import Labels, RawRows, Sample, make_track
from mien.models.evaluation.protocols import natural
from mien.models.evaluation.scores import Model
from tests.models.made_data import SPECS


def clip(seconds: int, level: float, corpus: str) -> Sample:
    """The level rises by 1 a second."""
    times = np.arange(seconds * 10, dtype=np.int64) * (NS_PER_S // 10)
    values = np.repeat((level + times[:, None] // NS_PER_S).astype(np.float32), SPECS["vision"].dim, 1)
    track = make_track(SPECS["vision"], RawRows(values, np.ones(len(times), np.bool_), times))
    return Sample(Labels(id=f"{corpus} {level}", corpus=corpus, duration_ns=seconds * NS_PER_S), {"vision": track})


def newest(features: Mapping[str, Float32], mask: Mapping[str, Float32]) -> tuple[Float32, Float32, Float32, Float32]:
    """Predicts the emotion that the newest row names, with a confidence that grows with the seconds seen."""
    size = len(features["vision"])
    classes = np.array([x[m > 0][-1, 0] for x, m in zip(features["vision"], mask["vision"], strict=True)]).astype(int)
    confidence = mask["vision"].sum(1) / 50
    return (
        np.zeros(size, np.float32),
        np.eye(7, dtype=np.float32)[classes % 7],
        confidence,
        np.tile(np.array([0, 0, 1], np.float32), (size, 1)),
    )


MODEL = Model(newest, SPECS)


def test_every_second_counts_and_is_causal() -> None:
    made = natural(MODEL, [clip(3, 0, "calm"), clip(2, 5, "other")], list(SPECS))
    # At the end of a second the window holds the first row of the next one.
    assert made["calm"]["seconds"] == 3
    assert made["other"]["seconds"] == 2
    assert made["all"]["seconds"] == 5
    assert made["calm"]["said"][EMOTIONS[1]] == pytest.approx(1 / 3)
    assert made["calm"]["neutral"] == 0.0
    assert made["calm"]["shares"] == {"text": 0.0, "audio": 0.0, "vision": 1.0}


def test_only_confident_non_neutral_counts_as_confidently_wrong() -> None:
    made = natural(MODEL, [clip(6, 1, "long")], list(SPECS))["long"]
    classes = [2, 3, 4, 5, 6, 6]
    assert [round(6 * made["said"][name]) for name in EMOTIONS] == [classes.count(k) for k in range(7)]
    assert made["sure_and_wrong"] == pytest.approx(3 / 6)  # sure from the fourth second on


def test_unobserved_seconds_are_not_counted() -> None:
    empty = Sample(Labels(id="x", corpus="none", duration_ns=2 * NS_PER_S), {})
    assert natural(MODEL, [empty], list(SPECS)) == {}
