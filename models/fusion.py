"""The fusion of CM-MSF: reliability of each modality, cascade, layer mixing, gates, heads, calibration.

hidden (B, S, d), observed (B, S)  per modality
    --Reliability-->      probability that each modality alone is right           learned from its errors
    --CrossModalStage-->  hidden of every depth, each complemented by the others  weighted by reliability
    --LayerMixing-->      one semantic sequence per modality                      learned weights over depths
    --MaskGatedFusion-->  z (B, d) and each modality's share                      availability x reliability x gate
    --heads-->            sentiment, emotions, log-variance
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mien.messages import EMOTIONS, SENTIMENT_MAX
from mien.models.architecture import ModelConfig

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

    `sentiment` (B,) in -3 ... 3; `logits` (B, 7); `log_variance` (B,) of the sentiment; `shares` (B, M), summing to
    1, or to 0 where nothing was observed; `judgement` of the modalities, None in a model without reliability.
    """

    sentiment: Tensor
    logits: Tensor
    log_variance: Tensor
    shares: Tensor
    judgement: Judgement | None = None

    def in_float32(self) -> Fused:
        """The same, cast to float32."""
        judgement = None if self.judgement is None else Judgement(*(output.float() for output in self.judgement))
        return Fused(
            self.sentiment.float(), self.logits.float(), self.log_variance.float(), self.shares.float(), judgement
        )

    @property
    def evidence(self) -> Tensor:
        """Exponents of the temperatures (see the function `evidence`)."""
        return evidence(self.shares, self.judgement)


def pool_to_slots(x: Tensor, mask: Tensor, slots: int, *, fixed: bool = False) -> tuple[Tensor, Tensor]:
    """Masked average of (B, T, d) over the steps of each of `slots` slots; a step across a border counts for both.

    Args:
        fixed: whether T is a constant of an exported graph, and with it what each step counts for.

    Returns the averages (B, slots, d), zero where nothing was observed, and the observed share of each slot.
    """
    share = slot_shares(int(x.shape[1]) if fixed else x.shape[1], slots, x.device).to(x)
    total, seen = share @ (x * mask[..., None]), mask @ share.T
    return total / seen.clamp(min=1e-6)[..., None], seen


def slot_shares(steps: int, slots: int, device: torch.device) -> Tensor:
    """(slots, steps): which part of a slot each step fills. Rows sum to 1."""
    # Integer arithmetic: a rounding error would make an unobserved slot look observed. Created on the device: a CUDA
    # graph cannot contain copies from elsewhere.
    step = torch.arange(steps, device=device) * slots
    slot = torch.arange(slots, device=device)[:, None] * steps
    overlap = torch.minimum(slot + steps, step + slots) - torch.maximum(slot, step)
    return overlap.clamp(min=0) / steps


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """Sum in order: as over a stack of them, but with fewer operators."""
    return reduce(torch.add, terms)


class BiLSTM(nn.Module):
    """A bidirectional LSTM over (B, T, D) that returns (B, T, 2 x hidden)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lstm(x)[0]
        return output


class TimeConv(nn.Module):
    """A Conv1d along time over (B, T, D), the length kept."""

    def __init__(self, dim: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return output


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
            count = _sum([available[n] for n in others])[:, None, None]
            if self.of_mean:
                seen = {n: (observed[n] > 0).to(own.dtype)[..., None] for n in others}
                mean = _sum([hidden[n] * seen[n] * weight[n][:, None, None] for n in others])
                added = self.others[m](own, mean / _sum(list(seen.values())).clamp(min=1.0))
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
        return _sum([weight * h for weight, h in zip(weights.unbind(0), depths, strict=True)])


class MaskedAttentionPool(nn.Module):
    """(B, S, d) and observed (B, S) -> (B, d): an average over the observed slots, weighted by attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)  # softmax ignores a bias

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        seen = (observed > 0).to(x.dtype)
        scores = self.score(torch.tanh(self.project(x)))[..., 0]
        # Attention over unobserved slots is exactly 0: exp underflows, and the product makes an empty window 0.
        weights = torch.softmax(scores - (1.0 - seen) * 1e4, 1) * seen
        return (weights[..., None] * x).sum(1)


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
                consensus = _sum([trust[n][:, None] * likely[n] for n in others])
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

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        d, count = config.dim, len(names)
        self.use_gate = config.gate
        self.pools = nn.ModuleDict({m: MaskedAttentionPool(d) for m in names})
        self.gates = nn.ModuleDict({m: nn.Linear(count * d + 2 * count, d) for m in names})
        self.values = nn.ModuleDict({m: nn.Linear(d, d) for m in names})
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(d)

    def forward(
        self, semantic: Tensors, observed: Tensors, available: Tensors, scale: Tensors
    ) -> tuple[Tensor, Tensor]:
        """Returns z (B, d) and shares (B, M) in the order of `semantic`. `scale` (B,): of each gating vector."""
        pooled = {m: self.dropout(self.pools[m](h, observed[m])) for m, h in semantic.items()}
        coverage = [observed[m].mean(1) for m in semantic]
        evidence = torch.cat([*pooled.values(), torch.stack([*available.values(), *coverage], -1)], -1)
        gated, weights = [], []
        for m, p in pooled.items():
            gate = torch.sigmoid(self.gates[m](evidence)) if self.use_gate else torch.ones_like(p)
            gate = gate * scale[m][:, None]
            gated.append(gate * torch.tanh(self.values[m](p)))
            weights.append(gate.mean(-1))
        weight = torch.stack(weights, -1)
        return self.norm(_sum(gated)), weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)


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
        judgement, weight, scale = None, available, available
        if self.reliability is not None:
            judgement = self.reliability(hidden, observed, available)
            weight = dict(zip(self.names, judgement.reliability.unbind(-1), strict=True))
            scale = dict(zip(self.names, self._scale(judgement, available).unbind(-1), strict=True))
        depths = [hidden]
        for stage in self.stages:
            present = {m: h for m, h in depths[-1].items() if complement is None or m in complement}
            depths.append({**depths[-1], **stage(present, observed, available, weight)})
        semantic = {m: self.mixing[m]([depth[m] for depth in depths]) for m in self.names}
        z, shares = self.mgf(semantic, observed, available, scale)
        sentiment = SENTIMENT_MAX * torch.tanh(self.sentiment(z)[:, 0] / SENTIMENT_MAX)
        return Fused(sentiment, self.emotions(z), self.log_variance(z)[:, 0], shares, judgement)

    def _scale(self, judgement: Judgement, available: Tensors) -> Tensor:
        """Reliability to the power of `sharpness`, relative to the most reliable modality: (B, M).

        Only ratios count; a single modality has 1.
        """
        there = torch.stack([*available.values()], -1)
        # The logarithm of a sigmoid, in operators that every engine supports.
        logarithm = judgement.logit.clamp(max=0.0) - torch.log(1.0 + torch.exp(-judgement.logit.abs()))
        power = self.sharpness * logarithm - (1.0 - there) * 1e4
        return torch.exp(power - power.amax(-1, keepdim=True)) * there

    def calibrated(self, fused: Fused) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sentiment (B,), emotion probabilities (B, 7), confidence (B,), shares (B, M).

        Confidence is the probability of the top emotion. With nothing observed the model abstains: sentiment 0,
        emotions equal, confidence 0, shares 0.
        """
        something = (fused.shares.sum(-1) > 0).to(fused.shares.dtype)
        temperature = torch.exp(fused.evidence @ torch.log(self.temperature))
        emotions = torch.softmax(fused.logits / temperature[:, None] * something[:, None], -1)
        return fused.sentiment * something, emotions, emotions.amax(-1) * something, fused.shares

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
