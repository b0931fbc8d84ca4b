"""CM-MSF: cross-modal emotion recognition by multi-layer semantic fusion.

After Xu & Gao, "Research on cross-modal emotion recognition based on multi-layer semantic fusion", Mathematical
Biosciences and Engineering 21(2):2488-2514, 2024, DOI 10.3934/mbe.2024110. The paper fixes the parts; sizes are ours.

    features, mask  --ModalityEncoder-->  hidden (B, S, d), observed (B, S)  one per modality
    all of them     --CrossModalStage x L-->  hidden of every depth          each complemented by the others
                    --LayerMixing-->  one semantic sequence per modality      learned weights over depths
                    --MaskGatedFusion-->  z (B, d) and each modality's share  hard availability x soft gating vector
                    --heads-->  sentiment, emotions, log-variance

B batch, S slots of the common time grid, d width, T steps and D numbers a row of a modality. What is not observed is
masked: no value under mask 0 reaches any output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.emotions import EMOTIONS, SENTIMENT_MAX
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig, PlaneLayer

MAX_DEVIATIONS = 10.0  # a normalised feature further out than this is a fault of a sensor, not evidence


class Encoding(NamedTuple):
    """A modality on the common grid: `hidden` (B, S, d), and `observed` (B, S), the observed share of each slot."""

    hidden: Tensor
    observed: Tensor


class Fused(NamedTuple):
    """What the heads say, before calibration, for training.

    `sentiment` (B,) in -3 ... 3; `logits` (B, 7); `log_variance` (B,) of the sentiment; `shares` (B, M), summing to
    1, or to 0 where nothing was observed.
    """

    sentiment: Tensor
    logits: Tensor
    log_variance: Tensor
    shares: Tensor


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


def shortened(mask: Tensor, stride: int) -> Tensor:
    """Mask (B, T) of `stride` times fewer steps, rounded up: observed where anything was."""
    if stride == 1:
        return mask
    # A maximum over reshaped steps: TensorRT has no pooling that rounds its length up.
    padded = F.pad(mask, (0, -mask.shape[1] % stride))
    # Not len(mask): that would be a constant in every captured graph.
    return padded.reshape(mask.shape[0], -1, stride).amax(2)


def around(steps: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding with which each output looks at its own `stride` inputs and as far to either side; the newest too."""
    outside = max(kernel - stride, 0)
    return outside // 2, outside - outside // 2 + -steps % stride


class FrontLayer(nn.Module):
    """A strided Conv1d that shortens a long modality, so that no recurrence runs over more than about 100 steps."""

    def __init__(self, dim: int, channels: int, kernel: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride, self.kernel = stride, kernel
        self.conv = nn.Conv1d(dim, channels, kernel, stride, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout1d(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        padding = around(x.shape[1], self.kernel, self.stride)
        mask = shortened(mask, self.stride)
        y = self.dropout(F.gelu(self.norm(self.conv(F.pad(x.transpose(1, 2), padding)))))
        return y.transpose(1, 2) * mask[..., None], mask


class PlaneFront(nn.Module):
    """Conv2d over the plane of bands x time, so that a pattern means the same a little higher or lower.

    Rows (B, T, D) whose first `bands` columns are a spectrum -> (B, T / stride, width), and the mask of those steps.
    The other columns join in after the layers, averaged over the same steps, and so does what is known of the window as
    a whole.
    """

    def __init__(self, dim: int, bands: int, planes: Sequence[PlaneLayer], width: int, whole: int = 0) -> None:
        super().__init__()
        self.bands, channels = bands, 1
        self.shapes = tuple((layer.kernel, layer.stride) for layer in planes)
        layers = []
        for layer in planes:
            layers.append(
                nn.Sequential(
                    nn.Conv2d(channels, layer.channels, layer.kernel, (2, layer.stride), bias=False),
                    nn.BatchNorm2d(layer.channels),
                    nn.GELU(),
                    nn.Dropout2d(layer.dropout),
                )
            )
            channels, bands = layer.channels, (bands + 1) // 2
        self.layers = nn.ModuleList(layers)
        self.join = nn.Linear(channels * bands + dim - self.bands + whole, width)

    def forward(self, x: Tensor, mask: Tensor, whole: Tensor | None = None) -> tuple[Tensor, Tensor]:
        plane, steps = x[..., : self.bands].transpose(1, 2)[:, None], mask  # (B, 1, bands, T)
        for layer, (kernel, stride) in zip(self.layers, self.shapes, strict=True):
            left, right = around(steps.shape[1], kernel, stride)
            steps = shortened(steps, stride)
            side = (kernel - 1) // 2
            plane = layer(F.pad(plane, (left, right, side, kernel - 1 - side))) * steps[:, None, None]
        spectrum = plane.flatten(1, 2).transpose(1, 2)
        others, _ = pool_to_slots(x[..., self.bands :], mask, steps.shape[1])
        parts = [spectrum, others]
        if whole is not None:
            parts.append(whole[:, None].expand(-1, spectrum.shape[1], -1))
        return F.gelu(self.join(torch.cat(parts, -1))) * steps[..., None], steps


class ModalityEncoder(nn.Module):
    """Parallel extraction of one modality: Conv1d beside BiLSTM, joined, then pooled to the common grid.

    Inputs are `features` (B, T, D) as the extractor made them and `mask` (B, T), 1 = observed. Normalisation happens
    in here, after masking, with the statistics of the training set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModalitySpec, config: ModelConfig) -> None:
        super().__init__()
        encoder = config.encoders[spec.name]
        self.slots, self.use_mask = config.slots, config.mask
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("std", torch.ones(spec.dim))
        self.centre, self.tilt = encoder.centre, encoder.tilt
        width, layers = spec.dim, []
        self.planes = None
        if encoder.planes:
            self.planes = PlaneFront(
                spec.dim, encoder.bands, encoder.planes, config.dim, encoder.centre if encoder.tilt else 0
            )
            width = config.dim
        for layer in encoder.front:
            layers.append(FrontLayer(width, layer.channels, layer.kernel, layer.stride, config.dropout))
            width = layer.channels
        self.front = nn.ModuleList(layers)
        hidden = encoder.hidden or config.dim // 2
        self.bilstm = BiLSTM(width, hidden) if config.bilstm else None
        self.conv = TimeConv(width, config.dim, encoder.kernel) if config.conv else None
        joined = (2 * hidden if config.bilstm else 0) + (config.dim if config.conv else 0)
        self.join = nn.Linear(joined, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Encoding:
        if not self.use_mask:
            mask = torch.ones_like(mask)
        # where, not a product: 0 x NaN would be NaN.
        x = torch.where(mask[..., None] > 0, (features - self.mean) / self.std, torch.zeros_like(features))
        tilt = None
        if self.centre:
            level = (x[..., : self.centre] * mask[..., None]).sum(1) / mask.sum(1).clamp(min=1.0)[:, None]
            centred = (x[..., : self.centre] - level[:, None]) * mask[..., None]
            x = torch.cat([centred, x[..., self.centre :]], -1)
            if self.tilt:
                tilt = level - level.mean(1, keepdim=True)
                if self.training:
                    # Half of the time without: it is the microphone's as much as the voice's.
                    tilt = tilt * (torch.rand_like(tilt[:, :1]) < 0.5)
        x = x.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
        steps = mask
        if self.planes is not None:
            x, steps = self.planes(x, steps, tilt)
        else:
            x = self.dropout(x)
        for layer in self.front:
            x, steps = layer(x, steps)
        branches = []
        if self.conv is not None:
            branches.append(F.gelu(self.conv(x)))
        if self.bilstm is not None:
            branches.append(self.bilstm(x))
        h = self.norm(self.join(self.dropout(torch.cat(branches, -1))))
        hidden, _ = pool_to_slots(h, steps, self.slots)
        _, observed = pool_to_slots(mask[..., None], mask, self.slots)
        return Encoding(hidden, observed)


def pool_to_slots(x: Tensor, mask: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Masked average of (B, T, d) over the steps of each of `slots` slots; a step across a border counts for both.

    Returns the averages (B, slots, d), zero where nothing was observed, and the observed share of each slot.
    """
    share = slot_shares(x.shape[1], slots, x.device).to(x)
    total, seen = share @ (x * mask[..., None]), mask @ share.T
    return total / seen.clamp(min=1e-6)[..., None], seen


def slot_shares(steps: int, slots: int, device: torch.device) -> Tensor:
    """(slots, steps): which part of a slot each step fills. Rows sum to 1."""
    # In whole numbers: a rest of rounding would make an unobserved slot look observed. Made on the device: a CUDA graph
    # takes no copies from elsewhere.
    step = torch.arange(steps, device=device) * slots
    slot = torch.arange(slots, device=device)[:, None] * steps
    overlap = torch.minimum(slot + steps, step + slots) - torch.maximum(slot, step)
    return overlap.clamp(min=0) / steps


class Complement(nn.Module):
    """What modality n adds to modality m: Conv1d(BiLSTM([H_m ; H_n])), (B, S, d) twice -> (B, S, d)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        both, d = 2 * config.dim, config.dim
        self.bilstm = BiLSTM(both, d // 2) if config.bilstm else nn.Linear(both, d)
        self.conv = TimeConv(d, d, 3) if config.conv else nn.Linear(d, d)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        output: Tensor = self.conv(self.bilstm(torch.cat([own, other], -1)))
        return output


class CrossModalStage(nn.Module):
    """One stage of the cascaded cross-modal encoder: every modality is complemented from every other observed one."""

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        self.pairs = nn.ModuleDict({f"{m}_from_{n}": Complement(config) for m in names for n in names if m != n})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(config.dim) for m in names})
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: dict[str, Tensor], available: dict[str, Tensor]) -> dict[str, Tensor]:
        """`hidden` (B, S, d) and `available` (B,), 1 or 0, of the modalities to consider."""
        complemented = {}
        for m, own in hidden.items():
            others = [n for n in hidden if n != m]
            if not others:
                complemented[m] = own
                continue
            # An unobserved n adds exactly nothing, and does not count in the mean.
            added = torch.stack(
                [self.pairs[f"{m}_from_{n}"](own, hidden[n]) * available[n][:, None, None] for n in others]
            )
            count = torch.stack([available[n] for n in others]).sum(0)[:, None, None]
            mean = added.sum(0) / count.clamp(min=1.0)
            complemented[m] = torch.where(count > 0, self.norms[m](own + self.dropout(mean)), own)
        return complemented


class LayerMixing(nn.Module):
    """Multi-layer semantics: the outputs of every depth of one modality, mixed by learned weights."""

    def __init__(self, depths: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(depths))

    def forward(self, depths: list[Tensor]) -> Tensor:
        weights = torch.softmax(self.weights, 0)
        return torch.stack([weight * h for weight, h in zip(weights.unbind(0), depths, strict=True)]).sum(0)


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


class MaskGatedFusion(nn.Module):
    """MGF: a hard availability mask times a soft gating vector for each modality."""

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
        self, semantic: dict[str, Tensor], observed: dict[str, Tensor], available: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns z (B, d) and shares (B, M) in the order of `semantic`."""
        pooled = {m: self.dropout(self.pools[m](h, observed[m])) for m, h in semantic.items()}
        coverage = [observed[m].mean(1) for m in semantic]
        evidence = torch.cat([*pooled.values(), torch.stack([*available.values(), *coverage], -1)], -1)
        gated, weights = [], []
        for m, p in pooled.items():
            gate = torch.sigmoid(self.gates[m](evidence)) if self.use_gate else torch.ones_like(p)
            gate = gate * available[m][:, None]
            gated.append(gate * torch.tanh(self.values[m](p)))
            weights.append(gate.mean(-1))
        weight = torch.stack(weights, -1)
        return self.norm(torch.stack(gated).sum(0)), weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)


class Fusion(nn.Module):
    """Everything after the encoders: cascade, layer mixing, MGF, heads, calibration.

    `temperature` (M + 1,) divides the emotion logits, each modality's by its share in the decision (a weighted
    geometric mean): a voice never heard before deserves less trust than a sentence. The last is for how much the
    decision is shared between modalities: several that agree deserve more than any of them. It is fitted on validation
    data.
    """

    temperature: Tensor

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        self.names = tuple(names)
        stages = config.stages if config.cascade else 0
        self.stages = nn.ModuleList(CrossModalStage(names, config) for _ in range(stages))
        self.mixing = nn.ModuleDict({m: LayerMixing(stages + 1) for m in names})
        self.mgf = MaskGatedFusion(names, config)
        self.sentiment = nn.Linear(config.dim, 1)
        self.emotions = nn.Linear(config.dim, len(EMOTIONS))
        self.log_variance = nn.Linear(config.dim, 1)
        self.register_buffer("temperature", torch.ones(len(self.names) + 1))

    def raw(self, encodings: Mapping[str, Encoding], complement: Collection[str] | None = None) -> Fused:
        """The heads before calibration.

        Args:
            encodings: of every modality.
            complement: the modalities that anything in the batch has; the cascade leaves out the others, which would
                add exactly nothing. None: all, whatever the batch has, as an exported graph must.
        """
        hidden = {m: encodings[m].hidden for m in self.names}
        observed = {m: encodings[m].observed for m in self.names}
        available = {m: (seen.amax(1) > 0).to(seen.dtype) for m, seen in observed.items()}
        depths = [hidden]
        for stage in self.stages:
            present = {m: h for m, h in depths[-1].items() if complement is None or m in complement}
            depths.append({**depths[-1], **stage(present, available)})
        semantic = {m: self.mixing[m]([depth[m] for depth in depths]) for m in self.names}
        z, shares = self.mgf(semantic, observed, available)
        sentiment = SENTIMENT_MAX * torch.tanh(self.sentiment(z)[:, 0] / SENTIMENT_MAX)
        return Fused(sentiment, self.emotions(z), self.log_variance(z)[:, 0], shares)

    def calibrated(self, fused: Fused) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sentiment (B,), emotion probabilities (B, 7), confidence (B,), shares (B, M).

        Confidence is the probability of the top emotion. With nothing observed the model abstains: sentiment 0,
        emotions equal, confidence 0, shares 0.
        """
        something = (fused.shares.sum(-1) > 0).to(fused.shares.dtype)
        temperature = torch.exp(evidence(fused.shares) @ torch.log(self.temperature))
        emotions = torch.softmax(fused.logits / temperature[:, None] * something[:, None], -1)
        return fused.sentiment * something, emotions, emotions.amax(-1) * something, fused.shares

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`hidden`, `observed` of each modality in the order of `names`, to what `calibrated` returns."""
        pairs = zip(self.names, inputs[::2], inputs[1::2], strict=True)
        return self.calibrated(self.raw({m: Encoding(hidden, observed) for m, hidden, observed in pairs}))


def evidence(shares: Tensor) -> Tensor:
    """What temperatures go by, (B, M) -> (B, M + 1): each modality's share, and how much the decision is shared.

    The latter is Simpson's index, 1 minus the sum of squares: 0 for one modality, 2/3 for three alike.
    """
    return torch.cat([shares, 1.0 - shares.square().sum(-1, keepdim=True)], -1)


class CMMSF(nn.Module):
    """The whole model. Inputs and outputs are named by the modalities of `specs`, in their order.

    A live stream calls `encoders[m]` only when the window of m has changed, and `fusion` on what they returned.
    """

    def __init__(self, specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> None:
        super().__init__()
        self.specs, self.config = tuple(specs), (config or ModelConfig()).fitted(specs)
        self.names = tuple(spec.name for spec in specs)
        self.encoders = nn.ModuleDict({spec.name: ModalityEncoder(spec, self.config) for spec in specs})
        self.fusion = Fusion(self.names, self.config)

    def normalise(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set mean and standard deviation (D,) of modalities, from the training set."""
        for name, (mean, std) in statistics.items():
            encoder = self.encoders[name]
            assert isinstance(encoder, ModalityEncoder)
            encoder.mean.copy_(mean)
            encoder.std.copy_(std.clamp(min=1e-3))

    def encode(self, name: str, features: Tensor, mask: Tensor) -> Encoding:
        """One modality: features (B, T, D), mask (B, T) -> hidden (B, S, d), observed (B, S)."""
        encoding: Encoding = self.encoders[name](features, mask)
        return encoding

    def fuse(self, encodings: Mapping[str, Encoding]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sentiment (B,), emotions (B, 7), confidence (B,), shares (B, M) of encoded modalities."""
        return self.fusion.calibrated(self.fusion.raw(encodings))

    def raw(self, features: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Fused:
        """Uncalibrated heads of a batch in which a modality may be left out altogether, for training and evaluation.

        The same numbers as with that modality's mask all zero, for less work.
        """
        some = next(iter(features.values()))
        encodings = {}
        for name in self.names:
            if name in features:
                encodings[name] = self.encode(name, features[name], mask[name])
            else:
                hidden = some.new_zeros(len(some), self.config.slots, self.config.dim)
                encodings[name] = Encoding(hidden, hidden[..., 0])
        complement = tuple(features) if self.config.mask else None
        return self.fusion.raw(encodings, complement)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`features`, `mask` of each modality in the order of `names`, to what `fuse` returns."""
        pairs = zip(self.names, inputs[::2], inputs[1::2], strict=True)
        return self.fuse({name: self.encode(name, features, mask) for name, features, mask in pairs})
