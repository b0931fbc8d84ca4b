"""The voice encoder of CM-MSF: the mean sound of a voice over a window, compared with how it usually sounds.

A speech recogniser's states contain the words, and a network that sees their order learns the corpora's sentences
instead of emotions. So only their mean over the window is used. Pitch and loudness are used only relative to a
reference: in absolute terms they identify the speaker and the microphone. Their course over time, and that of the
spectrum, through Conv1d and BiLSTM as in CM-MSF's other encoders, was hardly better than chance on unseen corpora
and made the whole model worse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.fusion import Encoding
from mien.models.layers import pool_to_slots
from mien.models.voice.columns import GIVEN, HIGHER, LOUDER, STATE, WEIGHT

MAX_DEVIATIONS = 10.0
OF_REFERENCE = (WEIGHT, GIVEN, LOUDER, HIGHER)


class VoiceReader(nn.Module):
    """Rows of `mien.models.voice.columns` (B, T, ROW) and mask (B, T) to an encoding.

    Normalises after masking, with the statistics of training rows without a reference. A reference of weight w replaces
    the same part of the population's mean: only 1 - w of it is subtracted here, also where less than w of the reference
    was subtracted (`SHARE`), which is part of what reads better.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModalitySpec, config: ModelConfig) -> None:
        super().__init__()
        d, seen = config.dim, STATE.stop - STATE.start + len(OF_REFERENCE)
        self.slots, self.use_mask = config.slots, config.mask
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("std", torch.ones(spec.dim))
        self.direct = nn.Linear(seen, d)
        self.layers = nn.Sequential(
            nn.Linear(seen, 2 * d), nn.LayerNorm(2 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * d, d)
        )
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(0.5 * config.dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Encoding:
        if not self.use_mask:
            mask = torch.ones_like(mask)
        # `where`, not a product: 0 x NaN would be NaN.
        known = torch.where(
            mask[..., None] > 0, features[..., STATE.start :], torch.zeros_like(features[..., STATE.start :])
        )
        # Not fixed: ONNX Runtime would then add ten shares of a tenth in another order, changing the last bits.
        _, observed = pool_to_slots(mask[..., None], mask, self.slots)
        whole = (known * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-6)
        states, reference = whole[:, : WEIGHT - STATE.start], whole[:, WEIGHT - STATE.start :]
        states = (states - (1.0 - reference[:, :1]) * self.mean[STATE]) / self.std[STATE]
        seen = self.dropout(torch.cat([states, reference], 1).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS))
        sound = self.norm(self.direct(seen) + self.layers(seen))
        # The same encoding for all slots with voice.
        return Encoding(sound[:, None] * (observed > 0).to(sound.dtype)[..., None], observed)
