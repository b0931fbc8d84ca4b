"""CM-MSF: cross-modal emotion recognition by multi-layer semantic fusion.

After Xu & Gao, "Research on cross-modal emotion recognition based on multi-layer semantic fusion", Mathematical
Biosciences and Engineering 21(2):2488-2514, 2024, DOI 10.3934/mbe.2024110. The paper fixes the parts; sizes are ours.

    features, mask  --ModalityEncoder-->  hidden (B, S, d), observed (B, S)  one per modality
    all of them     --Fusion-->           sentiment, emotions, confidence, shares, see `mien.models.fusion`

B batch, S slots of the common time grid, d width, T steps and D numbers a row of a modality. What is not observed is
masked: no value under mask 0 reaches any output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.fusion import Encoding, Fused, Fusion
from mien.models.layers import BiLSTM, TimeConv, pool_to_slots
from mien.models.voice_reader import VoiceReader

MAX_DEVIATIONS = 10.0  # bound of normalised features: beyond it they are sensor faults


def shortened(mask: Tensor, stride: int) -> Tensor:
    """Mask (B, T) of `stride` times fewer steps, rounded up: observed where anything was."""
    if stride == 1:
        return mask
    # A maximum over reshaped steps: TensorRT has no pooling that rounds its length up.
    padded = F.pad(mask, (0, -mask.shape[1] % stride))
    # Not len(mask): that would be a constant in every captured graph.
    return padded.reshape(mask.shape[0], -1, stride).amax(2)


def around(steps: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding for which each output sees its own `stride` inputs and as many to either side; the newest too."""
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


class ModalityEncoder(nn.Module):
    """Parallel extraction of one modality: Conv1d and BiLSTM in parallel, joined, then pooled to the common grid.

    Inputs are raw `features` (B, T, D) and `mask` (B, T), 1 = observed. Normalises after masking, with the statistics
    of the training set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModalitySpec, config: ModelConfig) -> None:
        super().__init__()
        encoder = config.encoders[spec.name]
        self.slots, self.use_mask = config.slots, config.mask
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("std", torch.ones(spec.dim))
        width, layers = spec.dim, []
        for layer in encoder.front:
            layers.append(FrontLayer(width, layer.channels, layer.kernel, layer.stride, config.dropout))
            width = layer.channels
        self.front = nn.ModuleList(layers)
        hidden = config.dim // 2
        self.bilstm = BiLSTM(width, hidden) if config.bilstm else None
        self.conv = TimeConv(width, config.dim, encoder.kernel) if config.conv else None
        joined = (2 * hidden if config.bilstm else 0) + (config.dim if config.conv else 0)
        self.join = nn.Linear(joined, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Encoding:
        if not self.use_mask:
            mask = torch.ones_like(mask)
        # `where`, not a product: 0 x NaN would be NaN.
        x = torch.where(mask[..., None] > 0, (features - self.mean) / self.std, torch.zeros_like(features))
        x, steps = self.dropout(x.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)), mask
        for layer in self.front:
            x, steps = layer(x, steps)
        branches = []
        if self.conv is not None:
            branches.append(F.gelu(self.conv(x)))
        if self.bilstm is not None:
            branches.append(self.bilstm(x))
        h = self.norm(self.join(self.dropout(torch.cat(branches, -1))))
        hidden, _ = pool_to_slots(h, steps, self.slots, fixed=True)
        _, observed = pool_to_slots(mask[..., None], mask, self.slots, fixed=True)
        return Encoding(hidden, observed)


class CMMSF(nn.Module):
    """The whole model. Inputs and outputs are named by the modalities of `specs`, in their order.

    A live stream calls `encoders[m]` only when the window of m has changed, and then `fusion` on all encodings.
    """

    def __init__(self, specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> None:
        super().__init__()
        self.specs, self.config = tuple(specs), (config or ModelConfig()).fitted(specs)
        self.names = tuple(spec.name for spec in specs)
        self.encoders = nn.ModuleDict(
            {
                spec.name: (VoiceReader if self.config.encoders[spec.name].voice else ModalityEncoder)(
                    spec, self.config
                )
                for spec in specs
            }
        )
        self.fusion = Fusion(self.names, self.config)

    def normalise(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set mean and standard deviation (D,) of modalities, from the training set."""
        for name, (mean, std) in statistics.items():
            encoder = self.encoders[name]
            assert isinstance(encoder, ModalityEncoder | VoiceReader)
            encoder.mean.copy_(mean)
            encoder.std.copy_(std.clamp(min=1e-3))

    def normalisation(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation (D,) of a modality's rows in the training set."""
        encoder = self.encoders[name]
        assert isinstance(encoder, ModalityEncoder | VoiceReader)
        return tuple(encoder.mean.tolist()), tuple(encoder.std.tolist())

    def encode(self, name: str, features: Tensor, mask: Tensor) -> Encoding:
        """One modality: features (B, T, D), mask (B, T) -> hidden (B, S, d), observed (B, S)."""
        encoding: Encoding = self.encoders[name](features, mask)
        return encoding

    def raw(self, features: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Fused:
        """Uncalibrated heads of a batch that may lack modalities, for training and evaluation.

        Equal to the outputs with their masks all zero, for less work.
        """
        return self.raw_of({name: self.encode(name, features[name], mask[name]) for name in features})

    def raw_of(self, encodings: Mapping[str, Encoding]) -> Fused:
        """The same, from encodings."""
        some = next(iter(encodings.values()))
        missing = Encoding(torch.zeros_like(some.hidden), torch.zeros_like(some.observed))
        whole = {name: encodings.get(name, missing) for name in self.names}
        return self.fusion.raw(whole, tuple(encodings) if self.config.mask else None)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`features`, `mask` of each modality in the order of `names`, to what `Fusion.calibrated` returns."""
        pairs = zip(self.names, inputs[::2], inputs[1::2], strict=True)
        encodings = {name: self.encode(name, features, mask) for name, features, mask in pairs}
        return self.fusion.calibrated(self.fusion.raw(encodings))
