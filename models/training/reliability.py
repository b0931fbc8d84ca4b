"""Fits the reliability of each modality on held-out data, on top of a frozen network.

On the items that it was trained on, a network is right too often to learn when it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch, Perturber
from mien.models.data.datasets import Dataset, Sample, Statistics
from mien.models.data.pairing import Pairing
from mien.models.training.encodings import EncodedItems
from mien.models.training.fusion_settings import FusionTraining, HeldOutGroups

MOST = 2000  # items of each modality
BATCH = 128
MEASURED = 24  # batches for the bias
RATE = 5e-3  # learning rate of the first step; it falls to 0

Level = tuple[str, str | None, float]  # modality, kind of damage, strength
Merits = dict[str, Tensor]  # by modality (B,), see `HeldOut.draw`


class HeldOut:
    """The items of the "valid" split with one emotion, and their damaged copies, encoded once.

    Attributes:
        items: at most `MOST` of each modality.
    """

    def __init__(self, network: CMMSF, dataset: Dataset, settings: FusionTraining) -> None:
        self._settings, self._names = settings, list(dataset.specs)
        valid = [s for s in dataset.split("valid") if s.emotion is not None and (s.labels.damage or not s.labels.copy)]
        random = np.random.default_rng((settings.seed, 77))
        shuffled = [valid[k] for k in random.permutation(len(valid))]
        self.items = [s for n in self._names for s in [s for s in shuffled if list(s.tracks) == [n]][:MOST]]
        self.items += [s for s in valid if len(s.tracks) > 1][:MOST]
        statistics = {name: Statistics(0, *network.normalisation(name)) for name in self._names}
        perturbation = msgspec.structs.replace(settings.perturbation, drop=0.0)
        network.eval()
        self._encoded = EncodedItems(network, self.items, Perturber(dataset.specs, statistics, perturbation), 1, random)
        self._left = surviving(self._encoded, self.items)

    def pairing(self, samples: Sequence[Sample]) -> Pairing:
        """Of those samples that are among the items."""
        chosen = {id(sample) for sample in samples}
        return Pairing([sample for sample in self.items if id(sample) in chosen])

    def kinds(self, pairing: Pairing, fewest: int) -> list[tuple[str, ...]]:
        """Every combination of at least `fewest` modalities of which items can be drawn."""
        return [
            chosen
            for count in range(fewest, len(self._names) + 1)
            for chosen in combinations(self._names, count)
            if pairing.emotions(chosen)
        ]

    def draw(
        self, pairing: Pairing, kind: Sequence[str], random: np.random.Generator, mix: HeldOutGroups
    ) -> tuple[Batch, Merits]:
        """A batch, and the merit of each member.

        It is 0 for a modality that alone is wrong, and for noise; 1 for one that is right; and for a damaged one that
        is right, how much of the accuracy such damage leaves.
        """
        groups = [
            pairing.draw(
                kind, random, composed=self._settings.composed, shares=mix.pair_emotions, conflict=mix.conflict,
                damaged=mix.damaged, damaged_wrong=mix.damaged_wrong, odd=mix.odd,
            )
            for _ in range(BATCH)
        ]  # fmt: skip
        batch = self._encoded.batch(groups, random, mix.noise)
        merits = {}
        for name, (logits, _) in batch.reader_outputs.items():
            left = torch.tensor([self._left.get(_level(name, group.members[name]), 1.0) for group in groups])
            right = (logits.argmax(1) == batch.emotions.argmax(1)) & (batch.own[name].sum(1) > 0)
            merits[name] = right.float() * left
        return batch, merits


def fit_reliability(network: CMMSF, held_out: HeldOut, samples: Sequence[Sample], settings: FusionTraining) -> None:
    """Fit the last layers of reliability on those held-out items. No other parameter changes.

    First those that judge a modality by itself, then those that correct the judgement in company.
    """
    module, fit, pairing = network.fusion.reliability, settings.reliability, held_out.pairing(samples)
    if module is None:
        return
    random = np.random.default_rng((settings.seed, 78))
    torch.manual_seed(settings.seed)
    trainable = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.requires_grad_(False).eval()
    module.train()
    for layers, fewest in ((module.own, 1), (module.company, 2)):
        kinds = held_out.kinds(pairing, fewest)
        layers.requires_grad_(True)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE, weight_decay=0.05)
        for step in range(fit.steps if kinds else 0):
            optimizer.param_groups[0]["lr"] = RATE * (1.0 - step / fit.steps)
            kind = kinds[-1] if random.random() < 0.5 else kinds[int(random.integers(len(kinds)))]
            batch, merits = held_out.draw(pairing, kind, random, settings.reliability)
            fused = network.raw_of(batch.encodings)
            assert fused.judgement is not None
            if layers is module.own:
                loss = _merit_loss(fused.judgement.own, merits, network.names)
            else:
                loss = fit.right * _merit_loss(fused.judgement.logit, merits, network.names)
                loss = loss + fit.decision * F.cross_entropy(fused.logits, batch.emotions)
                for name, merit in merits.items():
                    share = fused.shares[:, network.names.index(name)]
                    loss = loss + fit.ranking.get(name, 0.0) * ranking_loss(share, merit)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        layers.requires_grad_(False)
    for parameter, before in trainable.items():
        parameter.requires_grad_(before)
    network.eval()


@torch.no_grad()
def correct_bias(network: CMMSF, held_out: HeldOut, samples: Sequence[Sample], settings: FusionTraining) -> Tensor:
    """Shift the reliability in company until its mean is the mean merit, on items that it was not fitted on.

    Returns:
        What was added to each modality's logit (M,).
    """
    pairing, random = held_out.pairing(samples), np.random.default_rng((settings.seed, 79))
    kinds = held_out.kinds(pairing, 2)
    logits: list[list[Tensor]] = [[] for _ in network.names]
    merits: list[list[Tensor]] = [[] for _ in network.names]
    for k in range(MEASURED if kinds else 0):
        kind = kinds[-1] if k % 2 else kinds[k // 2 % len(kinds)]
        batch, merit = held_out.draw(pairing, kind, random, settings.reliability)
        judgement = network.raw_of(batch.encodings).judgement
        assert judgement is not None
        for name in kind:
            column = network.names.index(name)
            logits[column].append(judgement.logit[:, column])
            merits[column].append(merit[name])
    bias = torch.zeros(len(network.names))
    for column, (shown, due) in enumerate(zip(logits, merits, strict=True)):
        if not shown:
            continue
        low, high = -5.0, 5.0
        for _ in range(40):  # bisection: the mean grows with the bias
            bias[column] = (low + high) / 2
            over = torch.sigmoid(torch.cat(shown) + bias[column]).mean() > torch.cat(due).mean()
            low, high = (low, float(bias[column])) if over else (float(bias[column]), high)
    add_bias(network, bias)
    return bias


@torch.no_grad()
def add_bias(network: CMMSF, bias: Tensor) -> None:
    """Shift each modality's reliability in company by a logit (M,)."""
    module = network.fusion.reliability
    assert module is not None
    for name, shift in zip(network.names, bias, strict=True):
        layers = module.company[name]
        assert isinstance(layers, nn.Sequential)
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.add_(shift)


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples split in two by person, or where nobody is named by sentence or face; copies stay with their original."""
    who = [(s.labels.corpus, s.labels.speaker or s.labels.id.partition("~")[0]) for s in samples]
    second = set(sorted(set(who))[1::2])
    parts: tuple[list[Sample], list[Sample]] = [], []
    for sample, each in zip(samples, who, strict=True):
        parts[each in second].append(sample)
    return parts


def _merit_loss(logits: Tensor, merits: Merits, names: Sequence[str]) -> Tensor:
    """Cross-entropy of the merits in logits (B, M), summed over modalities."""
    return torch.stack(
        [F.binary_cross_entropy_with_logits(logits[:, names.index(name)], merit) for name, merit in merits.items()]
    ).sum()


def ranking_loss(shares: Tensor, merits: Tensor) -> Tensor:
    """How far shares (n,) are from ranking as merits (n,) do: a smooth 1 - AUROC, pairs weighted by the difference."""
    log = torch.log(shares + 1e-4)
    weight = (merits[:, None] - merits).clamp(min=0.0)
    return (weight * F.softplus(log - log[:, None])).sum() / weight.sum().clamp(min=1e-6)


def surviving(encoded: EncodedItems, samples: Sequence[Sample]) -> dict[Level, float]:
    """Accuracy under each level of damage relative to clean accuracy, at most 1.

    Args:
        samples: those that were encoded. Levels with few samples are smoothed towards the clean accuracy.
    """
    right: dict[Level, list[bool]] = {}
    for name, windows in encoded.modalities.items():
        items = [sample for sample in samples if name in sample.tracks]
        for sample, guess in zip(items, windows.logits[: len(items)].argmax(1).tolist(), strict=True):
            right.setdefault(_level(name, sample), []).append(guess == sample.emotion)
    clean = {name: float(np.mean(hits)) for (name, damage, _), hits in right.items() if damage is None}
    return {
        level: min(1.0, (sum(hits) + 2.0 * clean[level[0]]) / (len(hits) + 2.0) / clean[level[0]])
        for level, hits in right.items()
        if level[1] is not None and clean.get(level[0])
    }


def _level(name: str, sample: Sample) -> Level:
    damage = sample.labels.damage
    return name, damage, 0.0 if damage is None else sample.labels.strength
