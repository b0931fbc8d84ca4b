"""The field's standard metrics, as MMSA defines them, in plain numpy.

Every function takes the truth first. Nothing is rounded; callers print four decimals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SentimentMetrics:
    """Metrics of a sentiment regression on the CMU-MOSI scale.

    Attributes:
        has0_accuracy, has0_f1: `pred >= 0` against `truth >= 0`, all samples.
        non0_accuracy, non0_f1: `pred > 0` against `truth > 0`, without samples of truth 0.
        accuracy7, accuracy5: clipped to +-3 and +-2, rounded half to even, equal.
        mae, correlation: on unrounded values. Pearson's r is NaN if one side is constant.
        count: samples. All accuracies are NaN if it is 0.
    """

    has0_accuracy: float
    non0_accuracy: float
    has0_f1: float
    non0_f1: float
    accuracy7: float
    accuracy5: float
    mae: float
    correlation: float
    count: int


@dataclass(frozen=True)
class EmotionMetrics:
    """Metrics of a classification.

    Attributes:
        uar: unweighted average recall, over the classes that occur in the truth.
        accuracy, weighted_f1: as usual; F1 is weighted by class frequency.
        ece: expected calibration error of the top class in 15 bins.
        ece_by_chance: the ECE of a perfectly calibrated model with the same confidences on as few samples: 130 samples
            cannot tell an error of 0 from one of 0.08.
        confusion: (classes, classes), rows are the truth.
        count: samples.
    """

    uar: float
    accuracy: float
    weighted_f1: float
    ece: float
    ece_by_chance: float
    confusion: Labels
    count: int


def sentiment_metrics(truth: npt.ArrayLike, prediction: npt.ArrayLike) -> SentimentMetrics:
    """Metrics of predictions (n,) against truth (n,), both on the -3 ... 3 scale."""
    y, p = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if y.shape != p.shape or y.ndim != 1:
        raise ValueError(f"truth {y.shape} and prediction {p.shape} must be two lists of one length")
    non0 = y != 0
    has0_truth, has0_guess = (y >= 0).astype(np.int64), (p >= 0).astype(np.int64)
    non0_truth, non0_guess = (y[non0] > 0).astype(np.int64), (p[non0] > 0).astype(np.int64)
    return SentimentMetrics(
        has0_accuracy=_mean(has0_truth == has0_guess),
        non0_accuracy=_mean(non0_truth == non0_guess),
        has0_f1=weighted_f1(has0_truth, has0_guess),
        non0_f1=weighted_f1(non0_truth, non0_guess),
        accuracy7=class_accuracy(y, p, 3),
        accuracy5=class_accuracy(y, p, 2),
        mae=_mean(np.abs(y - p)),
        correlation=pearson(y, p),
        count=len(y),
    )


def emotion_metrics(truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> EmotionMetrics:
    """Metrics of probabilities (n, classes) against class numbers (n,)."""
    y, p = np.asarray(truth, np.int64), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"truth {y.shape} and probabilities {p.shape} do not belong together")
    guess = p.argmax(1) if len(p) else np.zeros(0, np.int64)
    table = confusion(y, guess, p.shape[1])
    confidence = p.max(1) if len(p) else np.zeros(0)
    return EmotionMetrics(
        uar=uar(table),
        accuracy=_mean(y == guess),
        weighted_f1=weighted_f1(y, guess),
        ece=calibration_error(y == guess, confidence),
        ece_by_chance=calibration_error_by_chance(confidence),
        confusion=table,
        count=len(y),
    )


def class_accuracy(truth: Array, prediction: Array, limit: int) -> float:
    """Acc-(2 limit + 1): both clipped to +-limit and rounded half to even."""
    rounded = [np.rint(np.clip(values, -limit, limit)) for values in (truth, prediction)]
    return _mean(rounded[0] == rounded[1])


def pearson(truth: Array, prediction: Array) -> float:
    """Pearson's correlation; NaN if one side is constant."""
    if len(truth) < 2:
        return float("nan")
    y, p = truth - truth.mean(), prediction - prediction.mean()
    scale = float(np.sqrt((y @ y) * (p @ p)))
    return float(y @ p) / scale if scale > 0 else float("nan")


def confusion(truth: Labels, guess: Labels, classes: int) -> Labels:
    """Counts (classes, classes); rows are the truth, columns the guess."""
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def uar(table: Labels) -> float:
    """Mean recall over the classes that occur, from a confusion matrix."""
    support = table.sum(1)
    occurs = support > 0
    return float((table.diagonal()[occurs] / support[occurs]).mean()) if occurs.any() else float("nan")


def weighted_f1(truth: Labels, guess: Labels) -> float:
    """F1 per class, weighted by its frequency in the truth; 0 for a class that is never predicted correctly."""
    if len(truth) == 0:
        return float("nan")
    total = 0.0
    for label in np.unique(truth):
        right = float(np.sum((truth == label) & (guess == label)))
        named = float(np.sum(guess == label)) + float(np.sum(truth == label))
        total += float(np.sum(truth == label)) * 2.0 * right / named
    return total / len(truth)


def calibration_error(right: npt.NDArray[np.bool_], confidence: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017).

    The mean distance of accuracy from confidence over equal-width confidence bins, weighted by their counts.
    """
    if len(right) == 0:
        return float("nan")
    parts = reliability(right, confidence, bins)
    return float(sum(abs(part["accuracy"] - part["confidence"]) * part["count"] for part in parts) / len(right))


def calibration_error_by_chance(confidence: Array) -> float:
    """The mean calibration error of a perfectly calibrated model.

    Averaged over 100 simulated outcomes: the lower bound for that many items. Deterministic for equal confidences.
    """
    if len(confidence) == 0:
        return float("nan")
    random = np.random.default_rng(0)
    errors = [calibration_error(random.random(len(confidence)) < confidence, confidence) for _ in range(100)]
    return float(np.mean(errors))


def reliability(right: npt.NDArray[np.bool_], confidence: Array, bins: int = 15) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of the non-empty bins of a reliability diagram, lowest confidence first."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return _accuracy_of_parts(right, confidence, [np.flatnonzero(place == k) for k in range(bins)])


def confidence_curve(right: npt.NDArray[np.bool_], confidence: Array, parts: int = 5) -> list[dict[str, float]]:
    """The same of `parts` groups of (nearly) equal size, from the least to the most confident."""
    order = np.argsort(confidence, kind="stable")
    return _accuracy_of_parts(right, confidence, np.array_split(order, parts))


def _accuracy_of_parts(
    right: npt.NDArray[np.bool_], confidence: Array, parts: Iterable[Labels]
) -> list[dict[str, float]]:
    return [
        {"confidence": float(confidence[part].mean()), "accuracy": float(right[part].mean()), "count": len(part)}
        for part in parts
        if len(part)
    ]


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(np.mean(values.astype(np.float64))) if len(values) else float("nan")
