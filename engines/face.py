"""The face CNN as the engine layer sees it, and the crop that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Network
from mien.errors import CheckpointError
from mien.models.weights import SHIPPED, encoder_digest

if TYPE_CHECKING:
    from torch import nn

CROP_VERSION = "1"  # of `mien.stream.modalities.vision.aligned_crop`
CROP_SIZE = 48


def weights_digest(path: Path) -> str:
    """`encoder_digest`; "none" if the file is missing."""
    return encoder_digest(path) if path.is_file() else "none"


def face_network(weights: Path | str = SHIPPED.face) -> Network:
    """The face CNN for an engine: "crop" (B, 1, 48, 48) float32, 0 ... 255, to "embedding" (B, 64), "logits" (B, 7).

    Raises:
        CheckpointError: the weights are missing, or (when built) are for another crop.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise CheckpointError(f"the face CNN's weights {weights} are missing; install mien again, or train them")
    # A gradient with some structure, so that an engine is checked on varied activations.
    ramp = np.linspace(40.0, 220.0, CROP_SIZE * CROP_SIZE, dtype=np.float32)
    example = ramp.reshape(1, 1, CROP_SIZE, CROP_SIZE)

    def build() -> nn.Module:
        from mien.models.face import load_face

        model = load_face(weights)
        if model.config.crop != CROP_VERSION:
            raise CheckpointError(
                f"{weights} was trained on crops of version {model.config.crop!r}, not {CROP_VERSION!r}; train it anew"
            )
        return model

    return Network(
        name="face",
        version=f"2-{weights_digest(weights)}-crop-{CROP_VERSION}",
        build=build,
        example={"crop": example},
        outputs=("embedding", "logits"),
        origin=("mien.engines.face:face_network", {"weights": str(weights)}),
    )
