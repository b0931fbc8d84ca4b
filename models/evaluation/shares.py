"""Whether a modality's share follows its reliability: under damage, in conflict, and when it is wrong.

Groups are items of different corpora, paired by label. A damaged copy replaces the very item that it was made from,
so that a table changes one thing at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mien.errors import DataError
from mien.messages import Bool, Int64
from mien.models.data.datasets import Sample
from mien.models.data.pairing import Group, Pairing
from mien.models.evaluation.metrics import emotion_metrics
from mien.models.evaluation.scores import Doubles, Model, Scores, score


def auroc(score: Doubles, positive: Bool) -> float:
    """Probability that a positive scores higher than a negative (area under the ROC curve); ties count half.

    NaN if either class is empty.
    """
    if positive.all() or not positive.any():
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of ties: their mean
    hits, misses = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def share_quality(model: Model, groups: Sequence[Group], modalities: Sequence[str]) -> dict[str, Any]:
    """How well each modality's share predicts whether that modality alone would be right."""
    truth = _truth(groups)
    shares = score(model, groups, modalities).gates
    known = list(model.specs)
    made: dict[str, Any] = {}
    for name in modalities:
        right = score(model, groups, [name]).emotions.argmax(1) == truth
        share = shares[:, known.index(name)]
        made[name] = {
            "auroc": auroc(share, right),
            "right_alone": float(right.mean()),
            "share_when_right": float(np.median(share[right])) if right.any() else None,
            "share_when_wrong": float(np.median(share[~right])) if not right.all() else None,
        }
    return made


def damage_table(
    model: Model,
    samples: Sequence[Sample],
    modalities: Sequence[str],
    size: int = 420,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Each modality under each kind and strength of damage: alone and with the others.

    Args:
        samples: clean items, and copies of some with every damage of the table.
        size: number of groups, balanced over emotions.

    Returns:
        Per modality: under "whole" the figures without damage, under "without" the others' decision, and under "kinds"
        per kind a list of figures by strength, weakest first; "conflict" tells which members the decision follows if
        the damaged one shows another emotion.

    Raises:
        DataError: there are no damaged copies.
    """
    damaged: dict[str, dict[tuple[str, float], dict[str, Sample]]] = {}
    for sample in samples:
        if sample.labels.damage is not None:
            base = sample.labels.id.rpartition("~")[0]
            for name in sample.tracks:
                level = damaged.setdefault(name, {}).setdefault((sample.labels.damage, sample.labels.strength), {})
                level[f"{sample.labels.corpus} {base}"] = sample
    if not damaged:
        raise DataError("no item has damaged copies; `mien eval --damage` makes them of corpora, not of datasets")
    clean = [s for s in samples if s.labels.damage is None]
    made: dict[str, Any] = {}
    total = sum(len(levels) for levels in damaged.values())
    done = 0
    for name in [m for m in modalities if m in damaged]:
        levels = damaged[name]
        there = set.intersection(*(set(copies) for copies in levels.values()))
        pairing = Pairing([s for s in clean if name not in s.tracks or _key(s) in there])
        groups, conflicts, odd = _groups(pairing, modalities, name, size)
        others = [m for m in modalities if m != name]
        table: dict[str, Any] = {
            "items": len(there),
            "whole": _level(model, groups, conflicts, odd, modalities, name),
            "without": _decision(score(model, groups, others), _truth(groups)) if others else None,
            "kinds": {},
        }
        for (kind, strength), copies in levels.items():
            agreeing, opposed = ([_with(group, name, copies) for group in part] for part in (groups, conflicts))
            level = {"strength": strength} | _level(model, agreeing, opposed, odd, modalities, name)
            table["kinds"].setdefault(kind, []).append(level)
            done += 1
            if progress is not None:
                progress(done, total)
        made[name] = table
    return made


def _key(sample: Sample) -> str:
    return f"{sample.labels.corpus} {sample.labels.id}"


def _with(group: Group, name: str, copies: Mapping[str, Sample]) -> Group:
    return replace(group, members=group.members | {name: copies[_key(group.members[name])]})


def _groups(
    pairing: Pairing, modalities: Sequence[str], name: str, size: int
) -> tuple[list[Group], list[Group], Int64]:
    """Groups that agree, groups with one member of another emotion, and which member that is."""
    random = np.random.default_rng(0)
    emotions = pairing.emotions(modalities)
    if not emotions:
        raise DataError(f"no emotion has examples of all of {', '.join(modalities)}; name corpora that have them")
    groups = [pairing.draw(modalities, random, emotion=emotions[k % len(emotions)]) for k in range(size)]
    conflicts, odd = [], []
    for k, group in enumerate(groups):
        if len(emotions) > 1:
            other = emotions[(k + 1 + int(random.integers(len(emotions) - 1))) % len(emotions)]
            member = pairing.draw([name], random, emotion=other).members
            conflicts.append(replace(group, members=group.members | member))
            odd.append(other)
    return groups, conflicts, np.array(odd)


def _truth(groups: Sequence[Group]) -> Int64:
    return np.array([int(np.argmax(group.emotions)) for group in groups if group.emotions is not None])


def _decision(scores: Scores, truth: Int64) -> dict[str, float]:
    metrics = emotion_metrics(truth, scores.emotions)
    return {"accuracy": metrics.accuracy, "uar": metrics.uar, "confidence": float(scores.confidence.mean())}


def _level(
    model: Model,
    groups: Sequence[Group],
    conflicts: Sequence[Group],
    odd: Int64,
    modalities: Sequence[str],
    name: str,
) -> dict[str, Any]:
    truth, column = _truth(groups), list(model.specs).index(name)
    together = score(model, groups, modalities)
    made: dict[str, Any] = {
        "alone": _decision(score(model, groups, [name]), truth),
        "company": _decision(together, truth),
        "share": float(np.median(together.gates[:, column])),
    }
    if len(conflicts) and len(modalities) > 1:
        scores = score(model, conflicts, modalities)
        top = scores.emotions.argmax(1)
        made["conflict"] = {
            "follows_the_others": float((top == _truth(conflicts)).mean()),
            "follows_the_odd_one": float((top == odd).mean()),
            "share": float(np.median(scores.gates[:, column])),
        }
    return made
