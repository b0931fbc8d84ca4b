"""Calibration on held-out data: the reliability of each modality, the decision between them, and temperatures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.cmmsf import CMMSF
from mien.models.data.batches import plain_batches
from mien.models.data.datasets import Dataset, Sample
from mien.models.data.pairing import Pairing, paired_set, single
from mien.models.fusion import evidence
from mien.models.training.decision import fit_decision
from mien.models.training.fusion_settings import FusionTraining
from mien.models.training.reliability import HeldOut, add_bias, correct_bias, fit_reliability, halves

BOUNDS = 0.1, 20.0  # of temperatures; those of exponents that stay small are large


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
    """Fit reliability, the decision and then temperatures on the "valid" split, and set them.

    Both are tried on people, sentences and faces that the reliability was not fitted on: it is fitted on either half,
    and what the other half shows sets the bias of reliability in company, and the temperatures; then it is fitted on
    all. Every corpus counts alike, and so does every combination of modalities.

    Args:
        outside: by modality, ratio of the temperature on corpora that were left out of training to the one on the
            "valid" split (`mien.models.training.leave_out`): users differ from all corpora.

    Returns:
        The temperatures; 1 where no validation item has an emotion.
    """
    network.eval()
    valid = [s for s in dataset.split("valid") if s.labels.emotions is not None]
    if not valid:
        return tuple(network.fusion.temperature.tolist())
    parts, shown = halves(valid), []
    if network.fusion.reliability is not None and settings.reliability.steps and all(parts):
        held_out, biases = HeldOut(network, dataset, settings), []
        for part, others in (parts, parts[::-1]):
            fitted = copy.deepcopy(network)
            fit_reliability(fitted, held_out, part, settings)
            biases.append(correct_bias(fitted, held_out, others, settings))
            fit_decision(fitted, held_out, part, settings)
            shown.append(_evidence(fitted, dataset, others, settings))
        fit_reliability(network, held_out, valid, settings)
        add_bias(network, torch.stack(biases).mean(0))
        fit_decision(network, held_out, valid, settings)
    else:
        shown.append(_evidence(network, dataset, valid, settings))
    logits, index, targets, weights = (torch.cat(column) for column in zip(*shown, strict=True))
    temperature = fit_temperatures(logits, index, targets, weights, len(network.names))
    for name, ratio in (outside or {}).items():
        if name in network.names:
            temperature[network.names.index(name)] *= ratio
    network.fusion.temperature.copy_(temperature)
    return tuple(network.fusion.temperature.tolist())


@torch.no_grad()
def _evidence(
    network: CMMSF, dataset: Dataset, labelled: Sequence[Sample], settings: FusionTraining
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (n, 7), exponents (n, K), targets (n, 7) and weights (n,) of items alone and in pairs."""
    valid = [s for s in labelled if not s.labels.copy]
    damaged = [s for s in labelled if s.labels.damage is not None]
    names, fit = list(dataset.specs), settings.reliability
    sets = [
        [single(s) for s in valid if s.labels.corpus == corpus][: settings.calibration_items]
        for corpus in sorted({s.labels.corpus for s in valid})
    ]
    pairing, size = Pairing(valid), settings.valid_items // 3
    chosen = [pair for count in range(2, len(names) + 1) for pair in combinations(names, count)]
    possible = [pair for pair in chosen if pairing.emotions(pair)]
    sets += [paired_set(valid, pair, size) for pair in possible]
    if damaged:
        spoilt = [[single(s) for s in damaged if name in s.tracks][: settings.calibration_items] for name in names]
        sets += [groups for groups in spoilt if groups]
        both, random = Pairing([*valid, *damaged]), np.random.default_rng(settings.seed)
        sets += [
            [
                both.draw(pair, random, conflict=0.2, damaged=0.5, damaged_wrong=settings.damaged_wrong, odd=fit.odd)
                for _ in range(size)
            ]
            for pair in possible
        ]
    rows = []
    for groups in sets:
        for batch in plain_batches(dataset.specs, groups):
            fused = network.raw(batch.features, batch.mask)
            weights = torch.full((len(fused.decision),), 1.0 / len(groups))
            rows.append((fused.decision, evidence(fused.shares, fused.judgement), batch.emotions, weights))
    logits, index, targets, weights = (torch.cat(column) for column in zip(*rows, strict=True))
    return logits, index, targets, weights
