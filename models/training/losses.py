"""Losses of CM-MSF: emotion, sentiment with its variance, and the reliability of each modality."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch
from mien.models.fusion import Encoding, Fused
from mien.models.training.fusion_settings import FusionTraining

MARGIN = 0.5  # permitted excess over the usual strength if only the sign of a sentiment is known


def variance_loss(log_variance: Tensor, error: Tensor) -> Tensor:
    """Gaussian negative log-likelihood (n,) of absolute errors (n,), less a constant.

    The error's gradient is detached: otherwise the variance would give up on hard items.
    """
    log_variance = log_variance.clamp(-6, 6)
    return 0.5 * (error.detach().square() * torch.exp(-log_variance) + log_variance)


def fusion_loss(fused: Fused, batch: Batch, settings: FusionTraining, weights: Tensor) -> Tensor:
    """Cross-entropy of emotions, error of sentiment and its variance; each over the items with that label.

    Args:
        weights: (7,), per emotion.
    """
    total = fused.sentiment.new_zeros(())
    known = batch.emotions.sum(1) > 0
    if known.any():
        smooth = settings.label_smoothing
        soft = batch.emotions[known] * (1 - smooth) + smooth / batch.emotions.shape[1]
        share = soft * weights
        total = total - settings.emotion_weight * (share * F.log_softmax(fused.logits[known], 1)).sum() / share.sum()
    fine = torch.isfinite(batch.sentiment) & ~batch.coarse
    if fine.any():
        error = (fused.sentiment[fine] - batch.sentiment[fine]).abs()
        spread = variance_loss(fused.log_variance[fine], error)
        total = total + (settings.sentiment_weight * error + settings.variance_weight * spread).mean()
    coarse = torch.isfinite(batch.sentiment) & batch.coarse
    if coarse.any():
        guess, truth = fused.sentiment[coarse], batch.sentiment[coarse]
        agreeing = guess * truth.sign()
        hinge = F.relu(truth.abs() - agreeing) + F.relu(agreeing - truth.abs() - MARGIN)
        error = torch.where(truth == 0, settings.neutral_weight * guess.abs(), hinge)
        total = total + settings.coarse_weight * error.mean()
    return total


def reliability_loss(
    network: CMMSF, encodings: Mapping[str, Encoding], fused: Fused, batch: Batch, settings: FusionTraining
) -> Tensor:
    """Cross-entropy of each modality's own emotions, and of the estimated probability that it is right.

    It is right if this very network, given that modality alone, predicts the group's emotion.
    """
    judgement = fused.judgement
    assert judgement is not None
    total = fused.logits.new_zeros(())
    known = batch.emotions.sum(1) > 0
    truth = batch.emotions.argmax(1)
    for name, (hidden, observed) in encodings.items():
        encoding = Encoding(hidden.float(), observed.float())
        column = network.names.index(name)
        has_rows = encoding.observed.amax(1) > 0
        shows = has_rows & (batch.own[name].sum(1) > 0)
        if shows.any() and settings.alone_weight > 0:
            errors = -(batch.own[name][shows] * F.log_softmax(judgement.alone[shows, column], 1)).sum(1)
            total = total + settings.alone_weight * errors.mean() / len(encodings)
        judged = has_rows & known
        if judged.any():
            with torch.no_grad():
                alone = fused if len(encodings) == 1 else network.raw_of({name: encoding})
                right = (alone.logits.argmax(1) == truth)[judged].to(judgement.own.dtype)
            for logit in (judgement.own, judgement.logit):
                error = F.binary_cross_entropy_with_logits(logit[judged, column], right)
                total = total + settings.reliability_weight * error / len(encodings)
    return total
