"""Neutral natural speech: how often another emotion is predicted, and how confidently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mien.clock import NS_PER_S
from mien.messages import EMOTIONS, NEUTRAL
from mien.models.data.batches import plain_batch
from mien.models.data.datasets import Sample
from mien.models.data.pairing import single
from mien.models.evaluation.scores import Model
from mien.windowing import WINDOW_NS

SURE = 0.7  # confidence from which users take a prediction as certain
BATCH = 64


def natural(model: Model, samples: Sequence[Sample], modalities: Sequence[str]) -> dict[str, Any]:
    """Predictions on neutral items, at every full second, and at the end of shorter ones.

    Returns:
        Per corpus, and under "all": the seconds with any observation, the fraction predicted neutral, the fraction of
        other emotions with a confidence above `SURE`, the mean confidence, the fraction of every emotion, and the mean
        share of every modality.
    """
    rows: dict[str, list[tuple[int, float, np.ndarray[Any, np.dtype[np.float64]]]]] = {}
    for sample in samples:
        length = sample.labels.duration_ns
        ends = [*range(NS_PER_S, length + 1, NS_PER_S)] or [length]
        group = single(sample, modalities)
        # A start other than 0 makes the end of the view count, instead of the whole item.
        views = [(group, max(1, end - WINDOW_NS), end) for end in ends]
        for begin in range(0, len(views), BATCH):
            batch = plain_batch(model.specs, views[begin : begin + BATCH], modalities)
            if not batch.features:
                continue
            seen = torch.stack([mask.amax(1) > 0 for mask in batch.mask.values()]).any(0).numpy()
            _, emotions, confidence, shares = model.run(
                {n: x.numpy() for n, x in batch.features.items()}, {n: x.numpy() for n, x in batch.mask.items()}
            )
            kept = rows.setdefault(sample.labels.corpus, [])
            kept += [(int(emotions[k].argmax()), float(confidence[k]), shares[k]) for k in np.flatnonzero(seen)]
    made = {corpus: _summary(kept, list(model.specs)) for corpus, kept in rows.items() if kept}
    everything = [row for kept in rows.values() for row in kept]
    return made | ({"all": _summary(everything, list(model.specs))} if everything else {})


def _summary(
    rows: Sequence[tuple[int, float, np.ndarray[Any, np.dtype[np.float64]]]], names: Sequence[str]
) -> dict[str, Any]:
    predicted = np.array([row[0] for row in rows])
    confidence = np.array([row[1] for row in rows])
    shares = np.stack([row[2] for row in rows]).mean(0)
    return {
        "seconds": len(rows),
        "neutral": float((predicted == NEUTRAL).mean()),
        "sure_and_wrong": float(((predicted != NEUTRAL) & (confidence > SURE)).mean()),
        "confidence": float(confidence.mean()),
        "said": {name: float((predicted == k).mean()) for k, name in enumerate(EMOTIONS)},
        "shares": dict(zip(names, shares.tolist(), strict=True)),
    }
