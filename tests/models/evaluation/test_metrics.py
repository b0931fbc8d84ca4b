"""Metrics against values worked out by hand, and against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mien.models.evaluation.metrics import (
    calibration_error,
    calibration_error_by_chance,
    class_accuracy,
    confidence_curve,
    confusion,
    emotion_metrics,
    sentiment_metrics,
    weighted_f1,
)
from mien.models.evaluation.plots import present_classes, save_plots

# Zero in the truth, zero and minus zero in the guesses, halves that round to even, and guesses beyond the scale.
TRUTH = np.array([0.0, 0.0, 2.5, -1.5, 3.0, -3.0, 1.0, -0.4])
GUESS = np.array([-0.2, 0.0, 1.5, -2.5, 3.4, -3.6, -0.1, 0.0])


def test_sentiment_by_hand() -> None:
    m = sentiment_metrics(TRUTH, GUESS)
    # Has0, truth + + + - + - + -, guess - + + - + - - +: right are 2, 3, 4, 5, 6.
    assert m.has0_accuracy == 5 / 8
    # class +: 3 right of 5 true, 4 named: F1 6/9. class -: 2 right of 3 true, 4 named: F1 4/7.
    assert m.has0_f1 == pytest.approx((5 * 6 / 9 + 3 * 4 / 7) / 8)
    # Non0, truth + - + - + -, guess + - + - - -: five right of six. A guess of exactly 0 is not positive.
    assert m.non0_accuracy == 5 / 6
    # class +: 2 right of 3, 2 named: 4/5. class -: 3 right of 3, 4 named: 6/7.
    assert m.non0_f1 == pytest.approx((3 * 4 / 5 + 3 * 6 / 7) / 6)
    # Acc-7, rounded truth 0 0 2 -2 3 -3 1 0; guess 0 0 2 -2 3 -3 0 0.
    assert m.accuracy7 == 7 / 8
    # Acc-5, clipped to 2: truth 0 0 2 -2 2 -2 1 0; guess 0 0 2 -2 2 -2 0 0.
    assert m.accuracy5 == 7 / 8
    assert m.mae == pytest.approx((0.2 + 0 + 1 + 1 + 0.4 + 0.6 + 1.1 + 0.4) / 8)
    assert m.correlation == pytest.approx(np.corrcoef(TRUTH, GUESS)[0, 1])
    assert m.count == 8


def test_f1_takes_truth_first() -> None:
    truth, guess = np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])
    assert weighted_f1(truth, guess) == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)
    assert weighted_f1(guess, truth) == pytest.approx(0.25 * 0.5 + 0.75 * 0.5)
    truth, guess = np.array([1, 1, 1, 1]), np.array([1, 1, 0, 0])
    assert weighted_f1(truth, guess) == pytest.approx(2 / 3)
    assert weighted_f1(guess, truth) == pytest.approx(0.5 * 2 / 3)


@pytest.mark.parametrize(
    ("truth", "guess", "limit", "right"),
    [(0.5, 0.4, 3, 1.0), (1.5, 2.4, 3, 1.0), (2.5, 3.0, 3, 0.0), (2.5, 3.0, 2, 1.0), (-2.9, -9.0, 3, 1.0)],
)
def test_halves_round_to_even_after_clipping(truth: float, guess: float, limit: int, right: float) -> None:
    assert class_accuracy(np.array([truth]), np.array([guess]), limit) == right


def test_emotion_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]])
    m = emotion_metrics([0, 1, 1, 1], probabilities)
    np.testing.assert_array_equal(m.confusion, [[1, 0, 0], [1, 2, 0], [0, 0, 0]])
    assert m.uar == pytest.approx((1 + 2 / 3) / 2)  # the class that never occurs does not count
    assert m.accuracy == 0.75
    assert m.weighted_f1 == pytest.approx((1 * 2 / 3 + 3 * 4 / 5) / 4)
    # four bins of one sample each: .9 right, .6 wrong, .8 right, .7 right
    assert m.ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)


def test_calibration_error_averages_within_a_bin() -> None:
    right = np.array([True, True, False, True])
    assert calibration_error(right, np.array([0.76, 0.76, 0.79, 0.79]), bins=10) == pytest.approx(0.775 - 0.75)
    assert calibration_error(right, np.ones(4), bins=10) == pytest.approx(0.25)


def test_calibration_error_is_positive_for_few_samples() -> None:
    random = np.random.default_rng(1)
    few, many = random.uniform(0.3, 1.0, 100), random.uniform(0.3, 1.0, 40_000)
    by_chance = calibration_error_by_chance(few)
    assert 0.05 < by_chance < 0.15
    assert calibration_error_by_chance(many) < 0.01
    drawn = [calibration_error(np.random.default_rng(k).random(100) < few, few) for k in range(200)]
    assert by_chance == pytest.approx(np.mean(drawn), abs=0.01)
    assert calibration_error_by_chance(np.ones(50)) == 0.0, "who is always sure and right leaves nothing to chance"
    assert np.isnan(calibration_error_by_chance(np.zeros(0)))


def test_confidence_curve_goes_from_least_to_most_confident() -> None:
    curve = confidence_curve(np.array([True, False, True, True]), np.array([0.9, 0.1, 0.3, 0.8]), parts=2)
    assert [b["accuracy"] for b in curve] == [0.5, 1.0]
    assert [b["confidence"] for b in curve] == pytest.approx([0.2, 0.85])


def test_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score  # two seconds for all tests else

    random = np.random.default_rng(0)
    truth = random.integers(0, 7, 500)
    probabilities = random.dirichlet(np.ones(7), 500)
    guess = probabilities.argmax(1)
    m = emotion_metrics(truth, probabilities)
    assert m.accuracy == pytest.approx(accuracy_score(truth, guess))
    assert m.uar == pytest.approx(balanced_accuracy_score(truth, guess))
    assert m.weighted_f1 == pytest.approx(f1_score(truth, guess, average="weighted"))
    assert confusion(truth, guess, 7).sum() == 500


def test_empty_metrics_are_nan() -> None:
    assert math.isnan(sentiment_metrics([0.0], [1.0]).non0_accuracy)
    assert math.isnan(sentiment_metrics([], []).mae)
    assert math.isnan(emotion_metrics([], np.zeros((0, 7))).uar)
    assert math.isnan(sentiment_metrics([1.0, 2.0], [1.0, 1.0]).correlation)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        sentiment_metrics([1.0], [1.0, 2.0])


def test_pictures_have_counts_and_no_row_of_a_class_without_items(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    metrics = {"labels": ["sad", "angry", "fear"], "confusion": [[3, 1, 0], [0, 0, 0], [1, 0, 5]], "uar": 0.79,
               "count": 10, "ece": 0.1}  # fmt: skip
    truths, counts = present_classes(metrics)
    assert (truths, counts.tolist()) == (["sad", "fear"], [[3, 1, 0], [1, 0, 5]])
    bins = [{"confidence": 0.5, "accuracy": 0.6, "count": 10}]
    made = save_plots({"corpora": {"emodb": {"emotion": metrics, "calibration": bins}}}, tmp_path)
    assert [path.name for path in made] == ["emodb-confusion.png", "emodb-calibration.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
