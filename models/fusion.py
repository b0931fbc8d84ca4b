"""The fusion of CM-MSF: reliability of each modality, cascade, layer mixing, gates, heads, calibration.

hidden (B, S, d), observed (B, S)  per modality
    --Reliability-->      probability that each modality alone is right           learned from its errors
    --CrossModalStage-->  hidden of every depth, each complemented by the others  weighted by reliability
    --LayerMixing-->      one semantic sequence per modality                      learned weights over depths
    --MaskGatedFusion-->  z (B, d) and each modality's share                      availability x reliability x gate
    --heads-->            sentiment, emotions, log-variance
    --Decision-->         emotions from the answers to each modality alone        Bayes' rule
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mien.messages import EMOTIONS, SENTIMENT_MAX
from mien.models.architecture import ModelConfig
from mien.models.decision import Decision
from mien.models.layers import BiLSTM, MaskedAttentionPool, TimeConv, log_sigmoid, relative, sum_of

Tensors = Mapping[str, Tensor]  # by modality


class Encoding(NamedTuple):
    """A modality on the common grid: `hidden` (B, S, d), and `observed` (B, S), the observed share of each slot."""

    hidden: Tensor
    observed: Tensor


class Judgement(NamedTuple):
    """An assessment of each modality alone.

    `alone` (B, M, 7): emotion logits from that modality only. `own` (B, M): logit of the probability that it is right,
    estimated from itself. `reliability` (B, M): that probability given the other modalities too, 0 for a missing one;
    `logit` (B, M): its logit.
    """

    alone: Tensor
    own: Tensor
    logit: Tensor
    reliability: Tensor


class Fused(NamedTuple):
    """Outputs of the heads before calibration, for training.

    `sentiment` (B,) in -3 ... 3; `logits` (B, 7) of the head; `log_variance` (B,) of the sentiment; `shares` (B, M)
    of the gating vectors, summing to 1, or to 0 where nothing was observed; `decision` (B, 7), logits of the answer:
    those of the head unless the model has a `Decision`; `answers` (B, M, 7), the head's logits for each modality alone,
    None without; `judgement` of the modalities, None in a model without reliability.
    """

    sentiment: Tensor
    logits: Tensor
    log_variance: Tensor
    shares: Tensor
    decision: Tensor
    answers: Tensor | None = None
    judgement: Judgement | None = None


class Complement(nn.Module):
    """What another modality, or the mean of others, adds to one: Conv1d(BiLSTM([H_m ; H_n])).

    (B, S, d) twice -> (B, S, d).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        both, d = 2 * config.dim, config.dim
        self.bilstm = BiLSTM(both, d // 2) if config.bilstm else nn.Linear(both, d)
        self.conv = TimeConv(d, d, 3) if config.conv else nn.Linear(d, d)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        output: Tensor = self.conv(self.bilstm(torch.cat([own, other], -1)))
        return output


class CrossModalStage(nn.Module):
    """One stage of the cascaded cross-modal encoder: every modality is complemented from every other observed one.

    With `config.complement` "pairs" each of the others adds its own complement, and their mean is taken; with "mean"
    one complement is made from the mean of the others over the slots in which they are observed.
    """

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        self.of_mean = config.complement == "mean"
        if self.of_mean:
            self.others = nn.ModuleDict({m: Complement(config) for m in names if len(names) > 1})
        else:
            self.pairs = nn.ModuleDict({f"{m}_from_{n}": Complement(config) for m in names for n in names if m != n})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(config.dim) for m in names})
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensors, observed: Tensors, available: Tensors, weight: Tensors) -> dict[str, Tensor]:
        """The modalities, each complemented: (B, S, d).

        Args:
            hidden: (B, S, d). observed: (B, S). available: (B,), 1 or 0.
            weight: (B,), 0 where the modality is missing, and 1 where it is fully relied upon.
        """
        complemented = {}
        for m, own in hidden.items():
            others = [n for n in hidden if n != m]
            if not others:
                complemented[m] = own
                continue
            count = sum_of([available[n] for n in others])[:, None, None]
            if self.of_mean:
                seen = {n: (observed[n] > 0).to(own.dtype)[..., None] for n in others}
                mean = sum_of([hidden[n] * seen[n] * weight[n][:, None, None] for n in others])
                added = self.others[m](own, mean / sum_of(list(seen.values())).clamp(min=1.0))
            else:
                # An unobserved n adds exactly nothing, and does not count in the mean.
                added = torch.stack(
                    [self.pairs[f"{m}_from_{n}"](own, hidden[n]) * weight[n][:, None, None] for n in others]
                ).sum(0) / count.clamp(min=1.0)
            complemented[m] = torch.where(count > 0, self.norms[m](own + self.dropout(added)), own)
        return complemented


class LayerMixing(nn.Module):
    """Multi-layer semantics: the outputs of every depth of one modality, mixed by learned weights."""

    def __init__(self, depths: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(depths))

    def forward(self, depths: list[Tensor]) -> Tensor:
        weights = torch.softmax(self.weights, 0)
        return sum_of([weight * h for weight, h in zip(weights.unbind(0), depths, strict=True)])


class Reliability(nn.Module):
    """The probability that each modality alone is right, from its own encoding and whether the others agree with it.

    Learned as such: true class probability (Corbiere et al., NeurIPS 2019). Uses the encoders' outputs, before the
    cascade mixes modalities.
    """

    HIDDEN = 32

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        d, count, emotions = config.dim, len(names), len(EMOTIONS)
        self.pools = nn.ModuleDict({m: MaskedAttentionPool(d) for m in names})
        self.alone = nn.ModuleDict({m: nn.Linear(d, emotions) for m in names})
        self.own = nn.ModuleDict({m: self._layers(d + emotions + 1) for m in names})
        # Own probabilities, those of the others, their agreement, and every modality's own reliability and presence.
        self.company = nn.ModuleDict({m: self._layers(2 * emotions + 1 + 2 * count) for m in names})
        self.dropout = nn.Dropout(config.dropout)

    def _layers(self, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, self.HIDDEN), nn.GELU(), nn.Linear(self.HIDDEN, 1))

    def forward(self, hidden: Tensors, observed: Tensors, available: Tensors) -> Judgement:
        """`hidden` (B, S, d), `observed` (B, S) and `available` (B,) of all modalities."""
        alone, likely, own = {}, {}, {}
        for m, h in hidden.items():
            pooled = self.dropout(self.pools[m](h, observed[m]))
            alone[m] = self.alone[m](pooled)
            # Detached: this branch learns whether the logits are right and must not change them.
            likely[m] = torch.softmax(alone[m].detach(), -1) * available[m][:, None]
            own[m] = self.own[m](torch.cat([pooled, likely[m], observed[m].mean(1)[:, None]], -1))[:, 0]
        trust = {m: torch.sigmoid(own[m].detach()) * available[m] for m in hidden}
        apart = torch.stack([*trust.values(), *available.values()], -1)
        logits = []
        for m in hidden:
            others = [n for n in hidden if n != m]
            consensus, company = torch.zeros_like(likely[m]), torch.zeros_like(available[m])
            if others:
                consensus = sum_of([trust[n][:, None] * likely[n] for n in others])
                company = reduce(torch.maximum, [available[n] for n in others])
            consensus = consensus / consensus.sum(-1, keepdim=True).clamp(min=1e-6)
            agreement = (consensus * likely[m]).sum(-1, keepdim=True)
            correction = self.company[m](torch.cat([likely[m], consensus, agreement, apart], -1))[:, 0]
            logits.append(own[m] + correction * company)
        logit = torch.stack(logits, -1)
        present = torch.stack(list(available.values()), -1)
        return Judgement(
            torch.stack(list(alone.values()), 1),
            torch.stack(list(own.values()), -1),
            logit,
            torch.sigmoid(logit) * present,
        )


class MaskGatedFusion(nn.Module):
    """MGF: a hard availability mask times a soft gating vector for each modality, scaled by its reliability."""

    seen: Tensor

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        d, count = config.dim, len(names)
        self.use_gate = config.gate
        self.pools = nn.ModuleDict({m: MaskedAttentionPool(d) for m in names})
        self.gates = nn.ModuleDict({m: nn.Linear(count * d + 2 * count, d) for m in names})
        self.values = nn.ModuleDict({m: nn.Linear(d, d) for m in names})
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(d)
        # What the gate of each modality may see: everything, and only what belongs to itself.
        owner = torch.cat([torch.arange(count).repeat_interleave(d), torch.arange(count).repeat(2)])
        own = torch.stack([(owner == k).float() for k in range(count)])
        self.register_buffer("seen", torch.stack([torch.ones_like(own), own], 1), persistent=False)

    def forward(
        self, semantic: Tensors, observed: Tensors, available: Tensors, scale: Tensor, alone: Tensors | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse them.

        Args:
            semantic: (B, S, d). scale: (B, M), of each gating vector.
            alone: (B, S, d), of each modality without what the others add to it.

        Returns:
            Of all modalities z (B, d) and shares (B, M), in the order of `semantic`; and of each modality in `alone` as
            if it were the only one, z (B, M, d).
        """
        # One batch of two, and one operator for all modalities: small ones cost what calling them costs.
        both = {m: torch.stack([h] if alone is None else [h, alone[m]], 1) for m, h in semantic.items()}
        ways = 1 if alone is None else 2
        pooled = {m: self.dropout(self.pools[m](h, observed[m][:, None])) for m, h in both.items()}
        flags = torch.stack([*available.values(), *(observed[m].mean(1) for m in semantic)], -1)
        evidence = torch.cat([*pooled.values(), torch.stack([flags] * ways, 1)], -1)
        values = torch.tanh(torch.stack([self.values[m](p) for m, p in pooled.items()], 1))
        if self.use_gate:
            seen = [self.gates[m](evidence * self.seen[k, :ways]) for k, m in enumerate(pooled)]
            gates = torch.sigmoid(torch.stack(seen, 1))
        else:
            gates = torch.ones_like(values)
        scales = torch.stack([scale, torch.ones_like(scale)][:ways], -1)
        gates = gates * scales[..., None]
        gated = gates * values
        weight = gates[:, :, 0].mean(-1)
        together = gated[:, :, 0].sum(1, keepdim=True)
        z = self.norm(together if alone is None else torch.cat([together, gated[:, :, 1]], 1))
        return z[:, 0], weight / weight.sum(-1, keepdim=True).clamp(min=1e-9), z[:, 1:]


class Fusion(nn.Module):
    """Everything after the encoders.

    `temperature` divides the emotion logits: (M + 1,), or (M + 3,) in a model with reliability. Each modality's counts
    by its share in the decision (a weighted geometric mean): an unknown voice is less certain than a sentence. The next
    is for how much the decision is shared between modalities: several that agree are more certain than any of them.
    Then come one for the probability that the modalities are wrong, and one for how far they disagree: somebody who
    smiles while talking is less surely happy than somebody whose words and voice are happy too. They are fitted on
    held-out data.
    """

    temperature: Tensor

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        self.names = tuple(names)
        self.sharpness = config.sharpness
        stages = config.stages if config.cascade else 0
        self.reliability = Reliability(names, config) if config.reliability else None
        self.stages = nn.ModuleList(CrossModalStage(names, config) for _ in range(stages))
        self.mixing = nn.ModuleDict({m: LayerMixing(stages + 1) for m in names})
        self.mgf = MaskGatedFusion(names, config)
        self.sentiment = nn.Linear(config.dim, 1)
        self.emotions = nn.Linear(config.dim, len(EMOTIONS))
        self.decision = Decision(names) if config.product and config.reliability else None
        self.log_variance = nn.Linear(config.dim, 1)
        self.register_buffer("temperature", torch.ones(len(self.names) + (3 if config.reliability else 1)))

    def raw(self, encodings: Mapping[str, Encoding], complement: Collection[str] | None = None) -> Fused:
        """The heads before calibration.

        Args:
            encodings: of every modality.
            complement: the modalities that occur in the batch; the cascade skips the others, which would add exactly
                nothing. None: all of them, as an exported graph must.
        """
        hidden = {m: encodings[m].hidden for m in self.names}
        observed = {m: encodings[m].observed for m in self.names}
        available = {m: (seen.amax(1) > 0).to(seen.dtype) for m, seen in observed.items()}
        judgement, weight, present = None, available, torch.stack([*available.values()], -1)
        scale = present
        if self.reliability is not None:
            judgement = self.reliability(hidden, observed, available)
            weight = dict(zip(self.names, judgement.reliability.unbind(-1), strict=True))
            # Only ratios count; a single modality has 1.
            scale = relative(self.sharpness * log_sigmoid(judgement.logit), present)
        depths = [hidden]
        for stage in self.stages:
            occurring = {m: h for m, h in depths[-1].items() if complement is None or m in complement}
            depths.append({**depths[-1], **stage(occurring, observed, available, weight)})
        semantic = {m: self.mixing[m]([depth[m] for depth in depths]) for m in self.names}
        z, shares, single = self.mgf(
            semantic, observed, available, scale, hidden if self.decision is not None else None
        )
        sentiment = SENTIMENT_MAX * torch.tanh(self.sentiment(z)[:, 0] / SENTIMENT_MAX)
        logits, answers = self.emotions(z), None
        decision = logits
        if self.decision is not None and judgement is not None:
            answers = self.emotions(single)
            together = self.decision(answers, judgement.logit, present)
            decision = torch.where(present.sum(1, keepdim=True) > 1, together, logits)
        return Fused(sentiment, logits, self.log_variance(z)[:, 0], shares, decision, answers, judgement)

    def calibrated(self, fused: Fused) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sentiment (B,), emotion probabilities (B, 7), confidence (B,), shares (B, M) of the answer.

        Confidence is the probability of the top emotion. Without a `Decision` the shares are those of the gating
        vectors. With nothing observed the model abstains: sentiment 0, emotions equal, confidence 0, shares 0.
        """
        something = (fused.shares.sum(-1) > 0).to(fused.shares.dtype)
        temperature = torch.exp(evidence(fused.shares, fused.judgement) @ torch.log(self.temperature))
        emotions = torch.softmax(fused.decision / temperature[:, None] * something[:, None], -1)
        shares = fused.shares
        if self.decision is not None and fused.answers is not None and fused.judgement is not None:
            present = (fused.judgement.reliability > 0).to(shares.dtype)
            shares = self.decision.shares(fused.answers, fused.judgement.own, present, emotions)
        return fused.sentiment * something, emotions, emotions.amax(-1) * something, shares

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`hidden`, `observed` of each modality in the order of `names`, to what `calibrated` returns."""
        pairs = zip(self.names, inputs[::2], inputs[1::2], strict=True)
        return self.calibrated(self.raw({m: Encoding(hidden, observed) for m, hidden, observed in pairs}))


def evidence(shares: Tensor, judgement: Judgement | None = None) -> Tensor:
    """Exponents of the temperatures: (B, M) to (B, M + 1), or to (B, M + 3) with what is judged of each modality.

    Each modality's share; how much the decision is shared (Simpson's index, 1 minus the sum of squares: 0 for one
    modality, 2/3 for three alike); how likely the modalities are wrong, on average over their shares; and how far they
    disagree: twice the Gini impurity of their mean answer less the mean impurity of their answers, 0 for one modality
    and 1 for two that are each certain of something else.
    """
    columns = [shares, 1.0 - shares.square().sum(-1, keepdim=True)]
    if judgement is not None:
        answers = torch.softmax(judgement.alone, -1)
        mean = (shares[..., None] * answers).sum(-2)
        pure = (shares * answers.square().sum(-1)).sum(-1, keepdim=True)
        columns.append((shares * (1.0 - judgement.reliability)).sum(-1, keepdim=True))
        columns.append(2.0 * (pure - mean.square().sum(-1, keepdim=True)))
    return torch.cat(columns, -1)
