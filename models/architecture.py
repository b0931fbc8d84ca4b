"""Sizes and switches of CM-MSF, as a checkpoint carries them. Light: no torch, so that anyone may read a checkpoint."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from mien.errors import ConfigError
from mien.messages import ModalitySpec

Count = Annotated[int, Meta(ge=1)]


class ConvLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One layer of a front end: Conv1d, BatchNorm, GELU, and dropout of whole channels."""

    channels: Count
    kernel: Count
    stride: Count = 1


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one modality is encoded.

    Attributes:
        front: strided layers before the recurrence, for modalities with many more steps than the grid has slots.
        kernel: of the Conv1d that stands beside the BiLSTM.
        hidden: of the BiLSTM, per direction; None is half of the model's dimension.
    """

    front: tuple[ConvLayer, ...] = ()
    kernel: Count = 3
    hidden: Count | None = None

    @property
    def stride(self) -> int:
        """Input steps per step of the recurrence."""
        total = 1
        for layer in self.front:
            total *= layer.stride
        return total


# A word is a unit of its own; sound changes over several steps, a face over few.
DEFAULT_ENCODERS = {
    "text": EncoderConfig(kernel=1),
    "audio": EncoderConfig(front=(ConvLayer(96, 5, 1), ConvLayer(96, 5, 5)), kernel=5),
    "vision": EncoderConfig(kernel=3),
}


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole model.

    Attributes:
        dim: width d of every hidden row. slots: S, steps of the common time grid. stages: L, cascaded stages.
        encoders: per modality; one that is not named gets `EncoderConfig()`.
        bilstm, conv, cascade, mask, gate: False takes that part out, for ablation.
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
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.2

    def __post_init__(self) -> None:
        if self.dim % 2:
            raise ConfigError(f"model dim {self.dim} must be even: a BiLSTM has half of it per direction")
        if not (self.bilstm or self.conv):
            raise ConfigError("an encoder without BiLSTM and without Conv1d has nothing left; switch one of them on")

    def encoder(self, spec: ModalitySpec) -> EncoderConfig:
        """How the modality is encoded.

        Raises:
            ConfigError: its front end would leave a recurrence of more than 100 steps.
        """
        encoder = self.encoders.get(spec.name, EncoderConfig())
        if spec.steps > 100 * encoder.stride:
            raise ConfigError(
                f"modality {spec.name} has {spec.steps} steps; give its encoder a front end with a stride of at "
                f"least {-(-spec.steps // 100)}, since a recurrence costs its length"
            )
        return encoder
