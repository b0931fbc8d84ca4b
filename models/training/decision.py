"""Fits the decision between modalities (`mien.models.decision`) on held-out data, on top of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.cmmsf import CMMSF
from mien.models.data.datasets import Sample
from mien.models.training.fusion_settings import FusionTraining
from mien.models.training.reliability import HeldOut

DRAWN = 100  # batches
ITERATIONS = 100  # of L-BFGS: there are ten numbers a modality
PENALTY = 0.01  # of the square of each but `odd`


def fit_decision(network: CMMSF, held_out: HeldOut, samples: Sequence[Sample], settings: FusionTraining) -> None:
    """Fit it to the emotions of groups of those held-out items: clean, damaged, with noise, and in conflict."""
    decision, pairing = network.fusion.decision, held_out.pairing(samples)
    kinds = held_out.kinds(pairing, 2)
    if decision is None or not kinds:
        return
    random, drawn = np.random.default_rng((settings.seed, 80)), []
    network.eval()
    with torch.no_grad():
        for k in range(DRAWN):
            kind = kinds[-1] if k % 2 else kinds[k // 2 % len(kinds)]
            batch, _ = held_out.draw(pairing, kind, random, settings.decision)
            fused = network.raw_of(batch.encodings)
            assert fused.answers is not None
            assert fused.judgement is not None
            present = (fused.judgement.reliability > 0).float()
            drawn.append((fused.answers, fused.judgement.logit, present, batch.emotions))
    answers, reliable, present, targets = (torch.cat(column) for column in zip(*drawn, strict=True))
    fitted = {name: buffer.clone().requires_grad_() for name, buffer in decision.named_buffers()}
    optimizer = torch.optim.LBFGS(list(fitted.values()), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        logits = torch.func.functional_call(decision, fitted, (answers, reliable, present))
        loss = F.cross_entropy(logits, targets)
        loss = loss + PENALTY * sum(value.square().sum() for name, value in fitted.items() if name != "odd")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    for name, buffer in decision.named_buffers():
        buffer.copy_(fitted[name].detach())
