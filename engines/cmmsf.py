"""CM-MSF cut into networks: an encoder for each modality, the fusion of what they return, and the whole in one.

A stream runs the parts, so that a modality whose window has not changed is not encoded again; engines are compared
on the whole, which is also compiled for batches.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Array, Network, Origin
from mien.files import digest_of
from mien.messages import ModalitySpec

if TYPE_CHECKING:
    from mien.models.checkpoint import Checkpoint

OUTPUTS = ("sentiment", "emotions", "confidence", "shares")


def encoder_network(checkpoint: Checkpoint, spec: ModalitySpec) -> Network:
    """`features` (B, T, D), `mask` (B, T) -> `hidden` (B, S, d), `observed` (B, S)."""
    features, mask = _window_example(checkpoint, spec)
    return Network(
        name=f"cmmsf-{spec.name}",
        version=_version(checkpoint),
        build=lambda: checkpoint.network().encoders[spec.name],
        example={"features": features, "mask": mask},
        outputs=("hidden", "observed"),
        origin=_origin(checkpoint, spec.name),
        dynamic={name: {0: "batch"} for name in ("features", "mask", "hidden", "observed")},
    )


def fusion_network(checkpoint: Checkpoint) -> Network:
    """`MODALITY.hidden`, `MODALITY.observed` of every modality, in the order of the checkpoint -> `OUTPUTS`."""
    slots, dim = checkpoint.config.slots, checkpoint.config.dim
    random = np.random.default_rng(0)
    example: dict[str, Array] = {}
    for spec in checkpoint.specs:
        observed = np.ones((1, slots), np.float32)
        observed[:, : slots // 4] = 0
        hidden = random.standard_normal((1, slots, dim)).astype(np.float32) * observed[..., None]
        example |= {f"{spec.name}.hidden": hidden, f"{spec.name}.observed": observed}
    return Network(
        name="cmmsf-fusion",
        version=_version(checkpoint),
        build=lambda: checkpoint.network().fusion,
        example=example,
        outputs=OUTPUTS,
        origin=_origin(checkpoint, "fusion"),
        dynamic={name: {0: "batch"} for name in (*example, *OUTPUTS)},
    )


def whole_network(checkpoint: Checkpoint, batch: int | None = None) -> Network:
    """`MODALITY.features`, `MODALITY.mask` of every modality, in the order of the checkpoint -> `OUTPUTS`.

    Args:
        batch: a fixed number of windows; None for any number.
    """
    example: dict[str, Array] = {}
    for spec in checkpoint.specs:
        features, mask = _window_example(checkpoint, spec)
        example |= {
            f"{spec.name}.features": np.repeat(features, batch or 1, 0),
            f"{spec.name}.mask": np.repeat(mask, batch or 1, 0),
        }
    return Network(
        name="cmmsf",
        version=_version(checkpoint),
        build=checkpoint.network,
        example=example,
        outputs=OUTPUTS,
        origin=_origin(checkpoint, "whole", batch),
        dynamic={} if batch else {name: {0: "batch"} for name in (*example, *OUTPUTS)},
    )


def part_network(checkpoint: str, part: str, batch: int | None = None) -> Network:
    """One of these networks by its name: "whole", "fusion", or that of a modality.

    Args:
        checkpoint: its file.

    Raises:
        CheckpointError: it cannot be used.
    """
    from mien.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    if part == "whole":
        return whole_network(loaded, batch)
    if part == "fusion":
        return fusion_network(loaded)
    return encoder_network(loaded, next(spec for spec in loaded.specs if spec.name == part))


def _origin(checkpoint: Checkpoint, part: str, batch: int | None = None) -> Origin:
    return "mien.engines.cmmsf:part_network", {"checkpoint": str(checkpoint.path), "part": part, "batch": batch}


def _window_example(checkpoint: Checkpoint, spec: ModalitySpec) -> tuple[Array, Array]:
    """A window drawn from the training set's mean and deviation, its oldest quarter not observed."""
    mean, std = checkpoint.normalisation(spec.name)
    mask = np.ones((1, spec.steps), np.float32)
    mask[:, : spec.steps // 4] = 0
    rows = mean + std * np.random.default_rng(0).standard_normal((1, spec.steps, spec.dim))
    return (rows * mask[..., None]).astype(np.float32), mask


def _version(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.digest}-{_code_digest()}"


@cache
def _code_digest() -> str:
    """Digest of the code of the network: a form compiled from other code is not this network."""
    from mien.models import architecture

    code = ("cmmsf.py", "fusion.py", "voice_reader.py", "architecture.py", "checkpoint.py")
    return digest_of(Path(str(architecture.__file__)).parent, code)
