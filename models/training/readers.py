"""Readers: networks of one modality, trained alone, that initialise the training of the fusion."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch
from mien.models.evaluation.metrics import confusion, uar
from mien.models.fusion import Fused

log = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]
_OF_SEVERAL = "fusion.reliability.", "fusion.decision."  # what a single modality does not need


def load_readers(network: CMMSF, readers: Mapping[str, Weights]) -> set[str]:
    """Copy readers' weights, by modality, into a network of several modalities.

    The first reader also contributes its fusion and heads: with its modality alone, the network then answers as that
    reader does.

    Returns:
        The names of the parameters that were loaded.

    Raises:
        DataError: a reader has other sizes.
    """
    state = network.state_dict()
    found: set[str] = set()
    for number, (name, reader) in enumerate(readers.items()):
        prefixes = [f"encoders.{name}."]
        if number == 0:
            prefixes += ["fusion.mgf.", "fusion.sentiment.", "fusion.emotions.", "fusion.log_variance."]
        for key, value in reader.items():
            if not key.startswith(tuple(prefixes)):
                continue
            if key.startswith("fusion.mgf.gates.") and value.ndim == 2:
                value = _widened(value, state[key], network.names.index(name), len(network.names))
            if key not in state or state[key].shape != value.shape:
                raise DataError(f"the trained reader of {name} does not fit this model ({key}); train it again")
            state[key] = value.to(state[key].dtype)
            found.add(key)
        if not any(key.startswith(f"encoders.{name}.") for key in found):
            raise DataError(f"the trained reader of {name} holds no encoder of {name}; train it again")
    network.load_state_dict(state)
    return found


def _widened(gate: Tensor, wide: Tensor, index: int, count: int) -> Tensor:
    """Weights (d, d + 2) of a single-modality gate, placed in those of a gate over `count` modalities.

    Those are (d, count d + 2 count). The columns of other modalities stay: their inputs are zero if they are missing.
    """
    dim = gate.shape[0]
    if gate.shape[1] != dim + 2 or wide.shape != (dim, count * dim + 2 * count):
        return gate  # the caller rejects its shape
    wide = wide.clone()
    wide[:, index * dim : (index + 1) * dim] = gate[:, :dim]
    wide[:, count * dim + index], wide[:, count * dim + count + index] = gate[:, dim], gate[:, dim + 1]
    return wide


def reader_networks(
    specs: Mapping[str, ModalitySpec], model: ModelConfig, readers: Mapping[str, Weights], device: torch.device
) -> dict[str, CMMSF]:
    """The readers as frozen networks of one modality, without reliability and decision."""
    networks = {}
    model = msgspec.structs.replace(model, reliability=False)
    for name, reader in readers.items():
        networks[name] = CMMSF([specs[name]], model).requires_grad_(False).eval()
        state = {key: value for key, value in reader.items() if not key.startswith(_OF_SEVERAL)}
        networks[name].load_state_dict(state | {"fusion.temperature": torch.ones(2)})
        networks[name].to(device)
    return networks


@torch.no_grad()
def reader_outputs(reader: CMMSF, batch: Batch) -> tuple[Tensor, Tensor]:
    """Emotion logits (B, 7) and sentiment (B,) of a reader on a batch of its modality."""
    fused = reader.raw(batch.features, batch.mask)
    return fused.logits, fused.sentiment


def distillation_loss(fused: Fused, outputs: tuple[Tensor, Tensor], sentiment: bool) -> Tensor:
    """Divergence of emotions from a reader's outputs (Li & Hoiem, ECCV 2016), and with `sentiment` of sentiments.

    Fine-tuning on several modalities must not degrade each one alone.
    """
    logits, expected = outputs
    loss = F.kl_div(F.log_softmax(fused.logits, 1), logits.softmax(1), reduction="batchmean")
    return loss + (fused.sentiment - expected).abs().mean() if sentiment else loss


def error_rates(readers: Mapping[str, CMMSF], checks: Sequence[tuple[str, Sequence[Batch]]]) -> dict[str, float]:
    """1 - UAR of each reader on validation batches, by modality."""
    rates = {}
    for name, batches in checks:
        if name in readers:
            logits = torch.cat([reader_outputs(readers[name], batch)[0] for batch in batches])
            emotions = torch.cat([batch.emotions for batch in batches])
            known = emotions.sum(1) > 0
            truth, guess = emotions[known].argmax(1), logits[known].argmax(1)
            table = confusion(truth.numpy(force=True), guess.numpy(force=True), emotions.shape[1])
            rates[name] = 1.0 - uar(table) if known.any() else 0.0
    log.info("error rates of the readers: %s", " ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    return rates
