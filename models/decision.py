"""The decision between modalities: Bayes' rule on what CM-MSF answers to each of them alone.

A head that is trained on fused vectors learns which modality to follow, and follows the strongest when it contradicts
the others. What each modality says alone, multiplied, gives every modality the weight of its evidence:

    p(y) ~ prod_m f_m(y)  +  sum_m odd_m (1 - f_m(y)) / 6 prod_{n != m} u_n f_n(y)      the sum from three modalities on

    f_m = u_m q_m + (1 - u_m) / 7       q_m: calibrated answer to m alone; u_m: how far m can be used at all

Terms of the sum: all show the same emotion, or m is the odd one out (a smile while somebody complains) and the others
show it. u_m falls where a modality is less often right than its answer claims: under noise, with a hand over the face,
or where it is rarely right against such others. With one modality the decision is that of the head.

A modality's share of the answer p is r_m ** RELIED_ON * s_m ** SUPPORTING, relative to the others': r_m is the
probability that it alone is right, judged from itself; s_m = sum_y p(y) q_m(y), how far it says what the answer says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mien.messages import EMOTIONS
from mien.models.layers import log_sigmoid, relative

CHANCE = 1.0 / len(EMOTIONS)
LEAST = 1e-4  # of a usability before its exponent
TINY = 1e-6  # instead of the logarithm of 0
# Exponents of a share: what reaches a third of the clean share under babble at 0 dB, at 12 pixels and with half of the
# words wrong, rises with no damage, and tells best whether a modality alone is right.
RELIED_ON, SUPPORTING = 1.5, 2.0


class Decision(nn.Module):
    """Combines the answers to M modalities. Its few numbers are fitted on held-out data.

    Attributes:
        scale: (M,), logarithm of the factor on the logits of each answer. bias: (M, 7), added to them: answers follow
            the frequencies of emotions in their corpora, and evidence must not.
        exponent: (M,), logarithm of the exponent of usability. odd: (M,), logarithm of how often the modality is the
            odd one out, relative to agreement.
    """

    scale: Tensor
    bias: Tensor
    exponent: Tensor
    odd: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        count = len(names)
        self.register_buffer("scale", torch.zeros(count))
        self.register_buffer("bias", torch.zeros(count, len(EMOTIONS)))
        self.register_buffer("exponent", torch.zeros(count))
        self.register_buffer("odd", torch.full((count,), -3.0))

    def forward(self, answers: Tensor, reliable: Tensor, present: Tensor) -> Tensor:
        """Logits (B, 7).

        Args:
            answers: (B, M, 7), logits of the answer to each modality alone. reliable: (B, M), logit of the probability
                that it is right, given the others too. present: (B, M), 1 or 0.
        """
        said = self._said(answers)
        claimed = (said.amax(-1) - CHANCE).clamp(min=1e-3)
        usable = ((torch.sigmoid(reliable) - CHANCE) / claimed).clamp(LEAST, 1.0) ** torch.exp(self.exponent) * present
        evidence = CHANCE + usable[..., None] * (said - CHANCE)
        # In logarithms: products of probabilities would leave the range of half precision.
        likely, log_usable = torch.log(evidence.clamp(min=TINY)), torch.log(usable.clamp(min=TINY))
        agreed = likely.sum(1, keepdim=True)
        if answers.shape[1] < 3:
            return agreed[:, 0]
        unlikely = torch.log((1.0 - evidence).clamp(min=TINY))
        log_prior = self.odd - math.log(len(EMOTIONS) - 1) + log_usable.sum(1, keepdim=True) - log_usable
        alternatives = torch.cat([agreed, agreed - likely + unlikely + log_prior[..., None]], 1)
        # Not torch.logsumexp: not every engine has it.
        largest = alternatives.amax(1, keepdim=True)
        return largest[:, 0] + torch.log(torch.exp(alternatives - largest).sum(1))

    def shares(self, answers: Tensor, own: Tensor, present: Tensor, emotions: Tensor) -> Tensor:
        """Shares (B, M) of an answer, summing to 1; 0 for a missing modality.

        Args:
            answers, present: as in `forward`. own: (B, M), logit of the probability that it alone is right.
            emotions: (B, 7), the answer.
        """
        support = (self._said(answers) * emotions[:, None]).sum(-1)
        log_weight = RELIED_ON * log_sigmoid(own) + SUPPORTING * torch.log(support.clamp(min=TINY))
        weight = relative(log_weight, present)
        return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)

    def _said(self, answers: Tensor) -> Tensor:
        """Probabilities (B, M, 7) of the answer to each modality alone."""
        return torch.softmax(answers * torch.exp(self.scale)[:, None] + self.bias, -1)
