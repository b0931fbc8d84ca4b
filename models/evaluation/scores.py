"""Predictions of a model on labelled samples, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mien.messages import EMOTIONS, Float32, ModalitySpec
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import plain_batch, tensors_of, whole_windows
from mien.models.data.pairing import Group
from mien.models.evaluation.metrics import confidence_curve, emotion_metrics, reliability, sentiment_metrics

BATCH = 128
Doubles = npt.NDArray[np.float64]
# Modifies features and mask in place, using the evaluation's generator.
Damage = Callable[[dict[str, Float32], dict[str, Float32], np.random.Generator], None]


class Model(NamedTuple):
    """A model to evaluate, with the modalities that it takes.

    `run`: features and mask per modality -> sentiment (B,), emotions (B, 7), confidence (B,), gates (B, M).
    """

    run: Callable[[Mapping[str, Float32], Mapping[str, Float32]], tuple[Float32, Float32, Float32, Float32]]
    specs: Mapping[str, ModalitySpec]


@dataclass(frozen=True, eq=False)
class Scores:
    """Predictions for n groups.

    `sentiment` (n,), `emotions` (n, 7), `confidence` (n,), `gates` (n, M), and whether anything was `observed` (n,).
    """

    sentiment: Doubles
    emotions: Doubles
    confidence: Doubles
    gates: Doubles
    observed: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of several sets of groups, concatenated."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def torch_model(network: CMMSF) -> Model:
    """The torch reference; modalities missing from a batch are skipped."""
    network.eval()

    @torch.inference_mode()
    def run(features: Mapping[str, Float32], mask: Mapping[str, Float32]) -> tuple[Float32, Float32, Float32, Float32]:
        fused = network.raw(tensors_of(features), tensors_of(mask))
        sentiment, emotions, confidence, gates = network.fusion.calibrated(fused)
        return sentiment.numpy(), emotions.numpy(), confidence.numpy(), gates.numpy()

    return Model(run, {spec.name: spec for spec in network.specs})


def score(
    model: Model,
    groups: Sequence[Group],
    modalities: Sequence[str],
    *,
    damage: Damage | None = None,
) -> Scores:
    """Run a model over groups.

    Args:
        modalities: to use; others are treated as missing.
        damage: applied to every batch before the model.
    """
    views = [(i, g, start, end) for i, g in enumerate(groups) for start, end in _views(g, modalities)]
    # Sorted by modalities, so that a batch has only those that it needs.
    views.sort(key=lambda view: sorted(view[1].members))
    random = np.random.default_rng(0)
    parts: list[tuple[Float32, Float32, Float32, Float32]] = []
    observed: list[npt.NDArray[np.bool_]] = []
    for begin in range(0, len(views), BATCH):
        chunk = plain_batch(model.specs, [view[1:] for view in views[begin : begin + BATCH]], modalities)
        features = {n: x.numpy() for n, x in chunk.features.items()}
        mask = {n: x.numpy() for n, x in chunk.mask.items()}
        if damage is not None:
            damage(features, mask, random)
        if not features:
            name = modalities[0]
            shape = len(chunk.sentiment), model.specs[name].steps
            features = {name: np.zeros((*shape, model.specs[name].dim), np.float32)}
            mask = {name: np.zeros(shape, np.float32)}
        parts.append(model.run(features, mask))
        observed.append(np.asarray(np.stack([m.any(1) for m in mask.values()]).any(0), np.bool_))
    owner = np.array([view[0] for view in views])
    return _averaged(
        [np.concatenate(column) for column in zip(*parts, strict=True)], np.concatenate(observed), owner, len(groups)
    )


def _views(group: Group, modalities: Sequence[str]) -> list[tuple[int, int]]:
    sample = max(group.members.values(), key=lambda s: s.labels.duration_ns)
    if len({id(s) for s in group.members.values()}) > 1:
        return [(0, sample.labels.duration_ns)]
    return whole_windows(sample, modalities)


def _averaged(
    columns: list[Float32], observed: npt.NDArray[np.bool_], owner: npt.NDArray[np.int64], count: int
) -> Scores:
    """The mean over each item's windows, ignoring windows without any observation."""
    seen = np.zeros(count, np.bool_)
    np.logical_or.at(seen, owner, observed)
    weight = np.where(seen[owner], observed, True).astype(np.float64)
    total = np.bincount(owner, weight, count)
    means = []
    for column in columns:
        wide = column.astype(np.float64).reshape(len(column), -1)
        summed = np.stack([np.bincount(owner, weight * wide[:, k], count) for k in range(wide.shape[1])], 1)
        mean = summed / total[:, None]
        means.append(mean if column.ndim > 1 else mean[:, 0])
    sentiment, emotions, confidence, gates = means
    return Scores(sentiment, emotions, confidence, gates, seen)


def figures(groups: Sequence[Group], scores: Scores) -> dict[str, Any]:
    """Metrics for the labels that the groups have, and the fraction of items without any observation.

    `sentiment` if its strength is known, `emotion` if it is one of the seven, `own_labels` if the corpus's own label
    differed before the votes.
    """
    made: dict[str, Any] = {"count": len(groups), "nothing_observed": float(1 - scores.observed.mean())}
    truth = np.array([np.nan if g.sentiment is None or g.coarse else g.sentiment for g in groups])
    known = np.isfinite(truth)
    if known.any():
        made["sentiment"] = asdict(sentiment_metrics(truth[known], scores.sentiment[known]))
    labels = np.array([-1 if g.emotion is None else g.emotion for g in groups])
    known = labels >= 0
    if known.any():
        metrics = emotion_metrics(labels[known], scores.emotions[known])
        made["emotion"] = asdict(metrics) | {"confusion": metrics.confusion.tolist(), "labels": list(EMOTIONS)}
        right = scores.emotions[known].argmax(1) == labels[known]
        made["calibration"] = reliability(right, scores.confidence[known])
        made["confidence_curve"] = confidence_curve(right, scores.confidence[known])
    # The corpus's own label from before the votes, -1 for none.
    owns = [[sample.labels.own for sample in group.members.values()] for group in groups]
    own = np.array([labels[0] if len(labels) == 1 and labels[0] is not None else -1 for labels in owns])
    if (own >= 0).any():
        metrics = emotion_metrics(own[own >= 0], scores.emotions[own >= 0])
        made["own_labels"] = {"uar": metrics.uar, "accuracy": metrics.accuracy, "count": metrics.count}
    made["confidence"] = float(scores.confidence.mean())
    made["gates"] = scores.gates.mean(0).tolist()
    return made


def missing_steps(rate: float) -> Damage:
    """Damage that drops each observed step with probability `rate`."""

    def damage(features: dict[str, Float32], mask: dict[str, Float32], random: np.random.Generator) -> None:
        for name in mask:
            mask[name] *= random.random(mask[name].shape) >= rate
            features[name] *= mask[name][..., None]

    return damage


def noise_instead(name: str, mean: Float32, std: Float32) -> Damage:
    """Damage that replaces one modality with white noise on the scale of its training rows."""

    def damage(features: dict[str, Float32], mask: dict[str, Float32], random: np.random.Generator) -> None:
        if name in features:
            noise = random.standard_normal(features[name].shape).astype(np.float32)
            features[name][:] = noise * std + mean
            mask[name][:] = 1.0

    return damage
