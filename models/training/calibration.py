"""Calibration on held-out data: the reliability of each modality, and then temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Perturber, plain_batches
from mien.models.data.datasets import Dataset, Sample, Statistics
from mien.models.data.pairing import Pairing, paired_set, single
from mien.models.fusion import Encoding
from mien.models.training.encodings import EncodedItems
from mien.models.training.fusion_settings import FusionTraining

BATCH = 128
MOST = 2000  # items of each modality for fitting reliability
BOUNDS = 0.1, 20.0  # of temperatures; those of exponents that stay small are large


def fit_reliability(network: CMMSF, dataset: Dataset, settings: FusionTraining) -> None:
    """Fit the last layers of reliability on the "valid" split, with its damaged copies and pairs in conflict.

    No other parameter changes; a model without reliability stays as it is. A damaged modality that is right counts as
    right only by the factor of its damage (see `surviving`): where it agrees with the others it nearly always is
    right, but it adds little to them.
    """
    valid = [s for s in dataset.split("valid") if s.emotion is not None and (s.labels.damage or not s.labels.copy)]
    module, names = network.fusion.reliability, list(dataset.specs)
    if module is None or settings.reliability_steps == 0 or not valid:
        return
    random = np.random.default_rng((settings.seed, 77))
    torch.manual_seed(settings.seed)
    order = random.permutation(len(valid))
    valid = [
        s
        for name in names
        for s in [valid[k] for k in order if name in valid[k].tracks and len(valid[k].tracks) == 1][:MOST]
    ] + [s for s in valid if len(s.tracks) > 1][:MOST]
    network.eval()
    statistics = {name: Statistics(0, *network.normalisation(name)) for name in names}
    noise = settings.perturbation.noise if settings.reliability_noise is None else settings.reliability_noise
    perturbation = msgspec.structs.replace(settings.perturbation, drop=0.0, noise=noise)
    perturber = Perturber(dataset.specs, statistics, perturbation)
    encoded = EncodedItems(network, valid, perturber, 1, random)
    pairing, left = Pairing(valid), surviving(encoded, valid, settings.surviving)
    damaged = settings.damaged if settings.reliability_damaged is None else settings.reliability_damaged
    conflict = settings.conflict if settings.reliability_conflict is None else settings.reliability_conflict
    wrong = {name: settings.reliability_damaged_wrong.get(name, settings.damaged_wrong) for name in names}
    kinds = [
        chosen
        for count in range(1, len(encoded.modalities) + 1)
        for chosen in combinations(encoded.modalities, count)
        if pairing.emotions(chosen)
    ]
    if not kinds:
        return
    layers = [*module.own.parameters(), *module.company.parameters()]
    trainable = [layer.requires_grad for layer in layers]
    for layer in layers:
        layer.requires_grad_(True)
    optimizer = torch.optim.AdamW(layers, lr=2e-3, weight_decay=0.05)
    module.train()
    for step in range(settings.reliability_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1.0 - step / settings.reliability_steps)
        kind = kinds[-1] if random.random() < 0.5 else kinds[int(random.integers(len(kinds)))]
        groups = [
            pairing.draw(
                kind,
                random,
                composed=settings.composed,
                conflict=conflict,
                damaged=damaged,
                damaged_wrong=wrong,
                odd=settings.odd,
            )
            for _ in range(BATCH)
        ]
        batch = encoded.batch(groups, random)
        truth = batch.emotions.argmax(1)
        some = next(iter(batch.encodings.values()))
        missing = Encoding(torch.zeros_like(some.hidden), torch.zeros_like(some.observed))
        whole = {name: batch.encodings.get(name, missing) for name in network.names}
        available = {name: (made.observed.amax(1) > 0).float() for name, made in whole.items()}
        judgement = module(
            {name: made.hidden for name, made in whole.items()},
            {name: made.observed for name, made in whole.items()},
            available,
        )
        loss = torch.zeros(())
        for name in batch.encodings:
            column, there = network.names.index(name), available[name] > 0
            right = (batch.reader_outputs[name][0].argmax(1) == truth).float()
            right = right * torch.tensor([left.get(_level(name, group.members[name]), 1.0) for group in groups])
            for logit in (judgement.own, judgement.logit):
                loss = loss + F.binary_cross_entropy_with_logits(logit[there, column], right[there])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for layer, before in zip(layers, trainable, strict=True):
        layer.requires_grad_(before)
    network.eval()


Level = tuple[str, str | None, float]  # modality, kind of damage, strength


def surviving(encoded: EncodedItems, samples: Sequence[Sample], exponents: Mapping[str, float]) -> dict[Level, float]:
    """Accuracy under each level of damage relative to clean accuracy, at most 1, raised to the modality's exponent.

    Args:
        samples: those that were encoded. Levels with few samples are smoothed towards the clean accuracy.
        exponents: by modality, default 1.
    """
    right: dict[Level, list[bool]] = {}
    for name, windows in encoded.modalities.items():
        items = [sample for sample in samples if name in sample.tracks]
        for sample, guess in zip(items, windows.logits[: len(items)].argmax(1).tolist(), strict=True):
            right.setdefault(_level(name, sample), []).append(guess == sample.emotion)
    clean = {name: float(np.mean(hits)) for (name, damage, _), hits in right.items() if damage is None}
    return {
        level: min(1.0, (sum(hits) + 2.0 * clean[level[0]]) / (len(hits) + 2.0) / clean[level[0]])
        ** exponents.get(level[0], 1.0)
        for level, hits in right.items()
        if level[1] is not None and clean.get(level[0])
    }


def _level(name: str, sample: Sample) -> Level:
    damage = sample.labels.damage
    return name, damage, 0.0 if damage is None else sample.labels.strength


def fit_temperature(logits: Tensor, evidence: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Temperatures (K,) with the lowest cross-entropy (after Guo et al., ICML 2017).

    Args:
        logits: (n, 7). evidence: (n, K), the exponent of each temperature. targets: (n, 7). weights: (n,), of items.
    """
    weights = torch.ones(len(logits)) if weights is None else weights
    log_temperature = torch.zeros(evidence.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        calibrated = logits / torch.exp(evidence @ log_temperature)[:, None]
        errors = -(targets * F.log_softmax(calibrated, 1)).sum(1)
        # The temperature of evidence that no item has stays at 1.
        loss = (weights * errors).sum() / weights.sum() + 1e-4 * log_temperature.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    return torch.exp(log_temperature.detach()).clamp(*BOUNDS)


def fit_temperatures(logits: Tensor, index: Tensor, targets: Tensor, weights: Tensor, count: int) -> Tensor:
    """Temperatures of each modality where it is alone, of their unreliability, and of shared decisions.

    In this order, or pairs, whose emotions are balanced, would change the temperature of a modality that is alone.

    Args:
        logits: (n, 7). index: (n, K), exponents of the temperatures (see `mien.models.fusion.evidence`).
        targets: (n, 7). weights: (n,). count: of modalities.

    Returns:
        (K,), see `mien.models.fusion.Fusion`; 1 for a modality that is never alone.
    """
    # How much a decision is shared, and how far those who share it disagree: both 0 for a modality alone.
    together = [column for column in (count, count + 2) if column < index.shape[1]]
    apart = [column for column in range(index.shape[1]) if column not in together]
    alone = index[:, :count].amax(1) == 1
    temperature = torch.ones(index.shape[1])
    if alone.any():
        temperature[apart] = fit_temperature(logits[alone], index[alone][:, apart], targets[alone], weights[alone])
    if not alone.all():
        shared = ~alone
        rest = logits / torch.exp(index[:, apart] @ temperature[apart].log())[:, None]
        temperature[together] = fit_temperature(
            rest[shared], index[shared][:, together], targets[shared], weights[shared]
        )
    return temperature


def calibrate(
    network: CMMSF, dataset: Dataset, settings: FusionTraining, outside: Mapping[str, float] | None = None
) -> tuple[float, ...]:
    """Fit reliability and then temperatures on the "valid" split, and set them.

    Every corpus counts alike, and so does every combination of modalities.

    Args:
        outside: by modality, ratio of the temperature on corpora that were left out of training to the one on the
            "valid" split (`mien.models.training.leave_out`): users differ from all corpora.

    Returns:
        The temperatures; 1 where no validation item has an emotion.
    """
    labelled = [s for s in dataset.split("valid") if s.labels.emotions is not None]
    valid = [s for s in labelled if not s.labels.copy]
    damaged = [s for s in labelled if s.labels.damage is not None]
    names = list(dataset.specs)
    pairings = [chosen for count in range(2, len(names) + 1) for chosen in combinations(names, count)]
    sets = [
        [single(s) for s in valid if s.labels.corpus == corpus][: settings.calibration_items]
        for corpus in sorted({s.labels.corpus for s in valid})
    ]
    possible = [chosen for chosen in pairings if Pairing(valid).emotions(chosen)]
    size = settings.valid_items // 3
    sets += [paired_set(valid, chosen, size) for chosen in possible]
    if damaged:
        spoilt = [[single(s) for s in damaged if name in s.tracks][: settings.calibration_items] for name in names]
        sets += [groups for groups in spoilt if groups]
        both, random = Pairing([*valid, *damaged]), np.random.default_rng(settings.seed)
        wrong = settings.damaged_wrong
        sets += [
            [
                both.draw(chosen, random, conflict=0.2, damaged=0.5, damaged_wrong=wrong, odd=settings.odd)
                for _ in range(size)
            ]
            for chosen in possible
        ]
    fit_reliability(network, dataset, settings)
    network.eval()
    logits, index, targets, weights = [], [], [], []
    for groups in sets:
        for batch in plain_batches(dataset.specs, groups):
            with torch.no_grad():
                fused = network.raw(batch.features, batch.mask)
            logits.append(fused.logits)
            index.append(fused.evidence)
            targets.append(batch.emotions)
            weights.append(torch.full((len(fused.logits),), 1.0 / len(groups)))
    if sets:
        temperature = fit_temperatures(
            torch.cat(logits), torch.cat(index), torch.cat(targets), torch.cat(weights), len(network.names)
        )
        for name, ratio in (outside or {}).items():
            if name in names:
                temperature[names.index(name)] *= ratio
        network.fusion.temperature.copy_(temperature)
    return tuple(network.fusion.temperature.tolist())
