"""Evaluation protocols beyond whole windows: missing steps, partial clips, label-paired fusion, natural speech.

There is no accepted protocol for streaming. Ours: a clip is predicted after its first tenth, second tenth ..., each
time from the window that ends there, without any later information, not even in the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
import torch

from mien.clock import NS_PER_S
from mien.messages import EMOTIONS, NEUTRAL, Float32, ModalitySpec
from mien.models.data.batches import plain_batch
from mien.models.data.datasets import Sample, Track, word_times_ns
from mien.models.data.pairing import Group, Pairing, single
from mien.models.evaluation.scores import Damage, Doubles, Model, Scores, figures, missing_steps, noise_instead, score
from mien.models.evaluation.shares import share_quality
from mien.windowing import WINDOW_NS

BATCH = 64  # windows of natural speech
SURE = 0.7  # confidence from which users take a prediction as certain
TENTHS = tuple(k / 10 for k in range(1, 11))
Normalisation = Mapping[str, tuple[Float32, Float32]]  # mean and standard deviation (D,) per modality
EncodeWords = Callable[[Sequence[str]], Float32]
_Second = tuple[int, float, Float32]  # of natural speech: the top emotion's number, its confidence, and shares (M,)


def robustness(
    model: Model,
    groups: Sequence[Group],
    modalities: Sequence[str],
    rates: Sequence[float],
) -> dict[str, Any]:
    """Figures at each rate of randomly dropped steps, for one checkpoint, and their mean over the rates."""
    by_rate = {
        f"{rate:.1f}": figures(groups, score(model, groups, modalities, damage=missing_steps(rate))) for rate in rates
    }
    means: dict[str, Any] = {}
    for part, names in (
        ("sentiment", ("has0_accuracy", "non0_accuracy", "mae", "correlation")),
        ("emotion", ("uar", "accuracy")),
    ):
        if all(part in made for made in by_rate.values()):
            means[part] = {name: float(np.mean([made[part][name] for made in by_rate.values()])) for name in names}
    return {"rates": by_rate, "mean": means}


def streaming(
    model: Model,
    samples: Sequence[Sample],
    modalities: Sequence[str],
    encode_words: EncodeWords | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Figures on the first 10 %, 20 % ... 100 % of each item; sign flips per minute; time to the final sign.

    Args:
        encode_words: the text encoder, to encode partial sentences as such; without it, rows of the whole sentence are
            truncated.
    """
    by_share: dict[str, Any] = {}
    rolling: list[Scores] = []
    for done, share in enumerate(TENTHS, start=1):
        groups = [single(partial(sample, model.specs, share, encode_words), modalities) for sample in samples]
        scores = score(model, groups, modalities)
        rolling.append(scores)
        by_share[f"{share:.1f}"] = figures(groups, scores)
        if progress is not None:
            progress(done, len(TENTHS))
    minutes = np.array([max(s.labels.duration_ns, NS_PER_S) for s in samples]) / (60 * NS_PER_S)
    sentiment = np.stack([scores.sentiment for scores in rolling])  # (10, n)
    signs = sentiment >= 0
    flips = (signs[1:] != signs[:-1]).sum(0)
    changed = np.array([np.flatnonzero(column != column[-1]) for column in signs.T], dtype=object)
    settled = np.array([TENTHS[int(at[-1]) + 1] if len(at) else TENTHS[0] for at in changed])
    return {
        "shares": by_share,
        "sign_flips_per_minute": float(flips.sum() / minutes.sum()),
        "seconds_to_final_sign": float((settled * minutes * 60).mean()),
        "share_to_final_sign": float(settled.mean()),
        "largest_sentiment_of_neutral": _of_neutral(samples, sentiment),
    }


def _of_neutral(samples: Sequence[Sample], sentiment: Doubles) -> dict[str, float] | None:
    neutral = [i for i, s in enumerate(samples) if s.emotion == NEUTRAL]
    if not neutral:
        return None
    largest = np.abs(sentiment[:, neutral]).max(0)
    return {
        "mean": float(largest.mean()),
        "p95": float(np.percentile(largest, 95)),
        "within_half_a_point": float((largest <= 0.5).mean()),
    }


def partial(
    sample: Sample, specs: Mapping[str, ModalitySpec], share: float, encode_words: EncodeWords | None
) -> Sample:
    """The prefix of an item that covers `share` of it."""
    end_ns = round(sample.labels.duration_ns * share)
    tracks: dict[str, Track] = {}
    for name, track in sample.tracks.items():
        spec = specs[name]
        if sample.labels.still and spec.rate_hz:
            # A photograph is visible for this share of a window.
            steps = max(1, round(spec.steps * share))
            tracks[name] = Track(
                np.repeat(track.values[:1], steps, 0), np.repeat(track.mask[:1], steps), np.zeros(steps, np.int64)
            )
            end_ns = steps * NS_PER_S // round(spec.rate_hz) - 1
        elif spec.rate_hz:
            begin_ns = max(0, end_ns - WINDOW_NS)
            kept = (track.times_ns <= end_ns) & (track.times_ns >= begin_ns)
            tracks[name] = Track(track.values * kept[:, None], track.mask * kept, track.times_ns)
        elif encode_words is not None and sample.labels.text:
            words = sample.labels.text.split()
            words = words[: max(1, round(len(words) * share))]
            values = encode_words(words)
            tracks[name] = Track(values, np.ones(len(words), np.float32), word_times_ns(len(words), end_ns))
        else:
            count = max(1, round(len(track.values) * share))
            tracks[name] = Track(track.values[:count], track.mask[:count], track.times_ns[:count])
    return Sample(msgspec.structs.replace(sample.labels, duration_ns=end_ns, still=False), tracks)


def fusion(
    model: Model,
    samples: Sequence[Sample],
    modalities: Sequence[str],
    normalisation: Normalisation,
    size: int = 1400,
) -> dict[str, Any]:
    """Label-paired items of one emotion: every subset of modalities, each one as noise, and two in conflict.

    Args:
        samples: never seen in training.
        normalisation: the scale of the noise.
    """
    pairing, random = Pairing(samples), np.random.default_rng(0)
    emotions = pairing.emotions(modalities)
    groups = [pairing.draw(modalities, random, emotion=emotions[k % len(emotions)]) for k in range(size)]
    mixed = [
        pairing.draw(modalities, random, emotion=emotions[k % len(emotions)], conflict=0.3, damaged=0.4)
        for k in range(size)
    ]

    def measured(names: Sequence[str], damage: Damage | None = None) -> dict[str, Any]:
        made = figures(groups, score(model, groups, names, damage=damage))
        return {k: made["emotion"][k] for k in ("uar", "accuracy", "weighted_f1", "ece", "ece_by_chance")} | {
            "confidence": made["confidence"], "gates": made["gates"]
        }  # fmt: skip

    subsets = {
        "+".join(names): measured(names)
        for count in range(1, len(modalities) + 1)
        for names in combinations(modalities, count)
    }
    noisy = {m: measured(modalities, noise_instead(m, *normalisation[m])) for m in modalities}
    confidence = {
        str(count): float(
            np.mean([made["confidence"] for names, made in subsets.items() if names.count("+") == count - 1])
        )
        for count in range(1, len(modalities) + 1)
    }
    best = max(subsets[m]["uar"] for m in modalities)
    whole = subsets["+".join(modalities)]["uar"]
    left = {m: max(subsets[n]["uar"] for n in modalities if n != m) for m in modalities}
    without = {m: subsets["+".join(n for n in modalities if n != m)]["uar"] - left[m] for m in modalities}
    return {
        "count": size,
        "subsets": subsets,
        "gain_over_best_single": whole - best,
        "without_one_over_best_remaining": without,
        "noise_in_one_over_best_remaining": {m: noisy[m]["uar"] - left[m] for m in modalities},
        "noise": noisy,
        "confidence_by_modalities": confidence,
        "shares": {
            "all agree": share_quality(model, groups, modalities),
            "one is often damaged or of another emotion": share_quality(model, mixed, modalities),
        },
        "conflict": {m: _conflict(model, pairing, modalities, m) for m in modalities},
    }


def _conflict(model: Model, pairing: Pairing, modalities: Sequence[str], odd: str) -> dict[str, Any]:
    """One modality shows one emotion and all others another: which one the model follows, and the gates."""
    random = np.random.default_rng(1)
    emotions = pairing.emotions(modalities)
    groups, ours, theirs = [], [], []
    for k in range(50 * len(emotions)):
        common = emotions[k % len(emotions)]
        other = emotions[(k + 1 + int(random.integers(len(emotions) - 1))) % len(emotions)]
        group = pairing.draw(modalities, random, emotion=common)
        group.members.update(pairing.draw([odd], random, emotion=other).members)
        groups.append(group)
        ours.append(common)
        theirs.append(other)
    scores = score(model, groups, modalities)
    top = scores.emotions.argmax(1)
    return {
        "follows_the_others": float((top == np.array(ours)).mean()),
        "follows_the_odd_one": float((top == np.array(theirs)).mean()),
        "confidence": float(scores.confidence.mean()),
        "gates": scores.gates.mean(0).tolist(),
    }


def natural(model: Model, samples: Sequence[Sample], modalities: Sequence[str]) -> dict[str, Any]:
    """Predictions on neutral items, at every full second, and at the end of shorter ones.

    Returns:
        Per corpus, and under "all": the seconds with any observation, the fraction predicted neutral, the fraction of
        other emotions with a confidence above `SURE`, the mean confidence, the fraction of every emotion, and the mean
        share of every modality.
    """
    rows: dict[str, list[_Second]] = {}
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


def _summary(rows: Sequence[_Second], names: Sequence[str]) -> dict[str, Any]:
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
