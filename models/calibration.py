"""Temperatures: how far what the heads say is to be believed, fitted on data that nothing was trained on."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.batches import plain_batches
from mien.models.cmmsf import CMMSF
from mien.models.datasets import Dataset
from mien.models.fusion import evidence
from mien.models.pairing import Pairing, paired_set, single
from mien.models.training import FusionTraining


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
        # What no item has stays at 1.
        loss = (weights * errors).sum() / weights.sum() + 1e-4 * log_temperature.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    return torch.exp(log_temperature.detach()).clamp(0.2, 5.0)


def fit_temperatures(
    logits: Tensor, shares: Tensor, targets: Tensor, weights: Tensor, reliability: Tensor | None = None
) -> Tensor:
    """A temperature for each of M modalities, where it is alone, one for how likely it is wrong, and then one for how
    much a decision is shared.

    One after the other: pairs, of which there are as many of each emotion, would otherwise have a say in what a
    modality deserves that is alone.

    Args:
        logits: (n, 7). shares: (n, M). targets: (n, 7). weights: (n,). reliability: (n, M), of a model that has it.

    Returns:
        (M + 1,) or, with `reliability`, (M + 2,), see `mien.models.fusion.Fusion`; 1 for a modality that is never
        alone.
    """
    index = evidence(shares, reliability)
    count = shares.shape[1]
    apart = [column for column in range(index.shape[1]) if column != count]
    alone = shares.amax(1) == 1
    temperature = torch.ones(index.shape[1])
    if alone.any():
        temperature[apart] = fit_temperature(logits[alone], index[alone][:, apart], targets[alone], weights[alone])
    if not alone.all():
        together = logits / torch.exp(index[:, apart] @ temperature[apart].log())[:, None]
        shared, both = ~alone, index[:, count : count + 1]
        temperature[count : count + 1] = fit_temperature(
            together[shared], both[shared], targets[shared], weights[shared]
        )
    return temperature


def calibrate(network: CMMSF, dataset: Dataset, settings: FusionTraining) -> tuple[float, ...]:
    """Fit the temperatures on the "valid" split, and set them.

    Every corpus counts alike, and so does every combination of modalities: neither the largest corpus nor the least
    certain sense decides for the others.

    Returns:
        The temperatures; 1 where no validation item has an emotion.
    """
    valid = [s for s in dataset.split("valid") if not s.labels.copy and s.labels.emotions is not None]
    names = list(dataset.specs)
    pairings = [chosen for count in range(2, len(names) + 1) for chosen in combinations(names, count)]
    sets = [
        [single(s) for s in valid if s.labels.corpus == corpus][: settings.calibration_items]
        for corpus in sorted({s.labels.corpus for s in valid})
    ]
    possible = [chosen for chosen in pairings if Pairing(valid).emotions(chosen)]
    sets += [paired_set(valid, chosen, settings.valid_items // 3) for chosen in possible]
    network.eval()
    logits, shares, reliability, targets, weights = [], [], [], [], []
    for groups in sets:
        for batch in plain_batches(dataset.specs, groups):
            with torch.no_grad():
                fused = network.raw(batch.features, batch.mask)
            logits.append(fused.logits)
            shares.append(fused.shares)
            if fused.judgement is not None:
                reliability.append(fused.judgement.reliability)
            targets.append(batch.emotions)
            weights.append(torch.full((len(fused.logits),), 1.0 / len(groups)))
    if sets:
        temperature = fit_temperatures(
            torch.cat(logits),
            torch.cat(shares),
            torch.cat(targets),
            torch.cat(weights),
            torch.cat(reliability) if reliability else None,
        )
        network.fusion.temperature.copy_(temperature)
    return tuple(network.fusion.temperature.tolist())
