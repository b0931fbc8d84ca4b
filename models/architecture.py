"""Sizes and switches of CM-MSF, as stored in a checkpoint. Lightweight: no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mien.errors import ConfigError
from mien.messages import ModalitySpec
from mien.models.voice.columns import ROW

LONGEST = 100  # maximum steps of a recurrence: its cost grows with its length on every engine

Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]

# Ablations: name of a part -> the fields of `ModelConfig` that remove it.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no BiLSTM": {"bilstm": False}, "no Conv1d": {"conv": False}, "no cascade": {"cascade": False},
    "no mask": {"mask": False}, "no gate": {"gate": False, "reliability": False},
    "no reliability": {"reliability": False}, "no product": {"product": False},
    "complement from pairs": {"complement": "pairs"},
}  # fmt: skip


class ConvLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One layer of a front end: Conv1d, BatchNorm, GELU, and dropout of whole channels."""

    channels: Count
    kernel: Count
    stride: Count = 1


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one modality is encoded.

    Attributes:
        front: strided layers before the recurrence, for modalities with many more steps than the grid has slots.
        kernel: of the Conv1d.
        voice: use `mien.models.voice_reader` instead; the fields above then have no effect.
    """

    front: tuple[ConvLayer, ...] = ()
    kernel: Count = 3
    voice: bool = False

    @property
    def stride(self) -> int:
        """Input steps per step of the recurrence."""
        return math.prod(layer.stride for layer in self.front)


# Words are units; audio changes over several steps, a face over few.
DEFAULT_ENCODERS = {
    "text": EncoderConfig(kernel=1),
    "audio": EncoderConfig(voice=True),
    "vision": EncoderConfig(kernel=3),
}


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole model.

    Attributes:
        dim: width d of every hidden row. slots: S, steps of the common time grid. stages: L, cascaded stages.
        encoders: per modality; one that is not named gets `EncoderConfig()`.
        bilstm, conv, cascade, mask, gate: False removes that part, for ablation (see ABLATIONS).
        complement: "pairs", each modality is complemented by each other one separately, 2 x 6 BiLSTMs in two stages of
            three modalities; "mean", by the mean of the others, half as many.
        reliability: estimate the probability that each modality alone is right; it scales the modality's gating
            vector and what it adds to others.
        sharpness: exponent of that probability where it scales a gating vector.
        product: decide between modalities by the product of the answers to each alone (`mien.models.decision`),
            weighted by their reliability; no effect without.
        dropout: in encoders, cascade and fusion, while training.
    """

    dim: Count = 96
    slots: Count = 25
    stages: Annotated[int, Meta(ge=0, le=8)] = 2
    encoders: dict[str, EncoderConfig] = msgspec.field(default_factory=lambda: dict(DEFAULT_ENCODERS))
    bilstm: bool = True
    conv: bool = True
    cascade: bool = True
    mask: bool = True
    gate: bool = True
    complement: Literal["pairs", "mean"] = "pairs"
    reliability: bool = False
    sharpness: Annotated[float, Meta(ge=0, le=8)] = 2.0
    product: bool = False
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.2

    def __post_init__(self) -> None:
        if self.dim % 2:
            raise ConfigError(f"model dim {self.dim} must be even: a BiLSTM has half of it per direction")
        if not (self.bilstm or self.conv):
            raise ConfigError("an encoder without BiLSTM and without Conv1d has nothing left; switch one of them on")

    def fitted(self, specs: Iterable[ModalitySpec]) -> ModelConfig:
        """This config, fitted to the modalities: adds a front end where a recurrence would otherwise be too long."""
        encoders = {}
        for spec in specs:
            encoder = self.encoders.get(spec.name, EncoderConfig())
            if encoder.voice and spec.dim != ROW:  # not the default's features
                encoder = msgspec.structs.replace(encoder, voice=False)
            if not encoder.voice and spec.steps > LONGEST * encoder.stride:
                stride = -(-spec.steps // (2 * self.slots)) // encoder.stride
                layer = ConvLayer(self.dim, 2 * (stride // 2) + 1, stride)
                encoder = msgspec.structs.replace(encoder, front=(*encoder.front, layer))
            encoders[spec.name] = encoder
        return msgspec.structs.replace(self, encoders=encoders)
