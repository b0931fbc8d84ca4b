"""Training of CM-MSF on datasets of rows: many corpora, each with its own modalities and labels.

A batch is of one kind: one modality alone, multimodal items, or items of different corpora paired by label. A batch of
one modality costs a fraction of a paired one, because the cascade has nothing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mien.errors import DataError
from mien.messages import EMOTIONS
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch
from mien.models.data.datasets import Dataset, make_statistics
from mien.models.fusion import Encoding
from mien.models.training.device import mixed_precision
from mien.models.training.fusion_settings import FusionTraining
from mien.models.training.loop import Report, Run, class_weights, decay_groups, fit, warm_cosine
from mien.models.training.losses import fusion_loss, reliability_loss
from mien.models.training.readers import (
    Weights,
    distillation_loss,
    error_rates,
    load_readers,
    reader_networks,
    reader_outputs,
)
from mien.models.training.sampling import BatchSampler, validation_batches
from mien.models.weights.tensors import tensors_digest

log = logging.getLogger(__name__)


def train_fusion(
    dataset: Dataset,
    settings: FusionTraining,
    *,
    readers: Mapping[str, Weights] | None = None,
    state: Path | None = None,
    log_dir: Path | None = None,
    device: torch.device | None = None,
    report: Report | None = None,
) -> Run[CMMSF]:
    """Train on the "train" split, and keep the weights that do best on "valid".

    Args:
        readers: weights of CM-MSF trained with one modality alone, by modality (see `load_readers`).
        state, log_dir, report: see `fit`.
        device: default: the CPU (see `training_device`).

    Returns:
        The run; its averaged weights are those with the lowest validation loss, on the CPU.

    Raises:
        DataError: nothing to train or to validate on, or the state belongs to another run.
    """
    device = device or torch.device("cpu")
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    train, valid = dataset.split("train"), [s for s in dataset.split("valid") if not s.labels.copy]
    if not train or not valid:
        raise DataError("training needs items in the splits `train` and `valid`; give a corpus that has both")
    specs = dataset.specs
    readers = dict(readers or {})
    if settings.views:
        readers |= _missing_readers(dataset, settings, readers, device)
    statistics = make_statistics([s for s in train if s.labels.damage is None], specs)
    network = CMMSF(list(specs.values()), settings.model)
    network.normalise({n: (torch.tensor(s.mean), torch.tensor(s.std)) for n, s in statistics.items()})
    loaded = load_readers(network, readers)
    teachers = reader_networks(specs, settings.model, readers, device)
    network.to(device)
    network.encoders.requires_grad_(settings.views == 0)
    sampler = BatchSampler(train, specs, statistics, settings)
    checks = [(kind, [b.to(device) for b in made]) for kind, made in validation_batches(valid, specs, settings)]
    measured = error_rates(teachers, checks)
    sampler.error_rates = {name: max(rate, settings.wrong.get(name, 0.0)) for name, rate in measured.items()}
    if settings.views:
        sampler.encode(network, teachers)
        checks = [(kind, [_encoded(network, b) for b in made]) for kind, made in checks]
    labelled = [s.labels.emotions for s in train if s.labels.emotions is not None and s.labels.damage is None]
    counts = torch.tensor(np.sum(labelled, 0) if labelled else np.ones(len(EMOTIONS)), dtype=torch.float32)
    weights = class_weights(counts, settings.temper).to(device)
    schedule = warm_cosine(settings.steps, settings.warm_up, floor=0.04)
    run = Run(network, _optimizer(network, settings, loaded), schedule, decay=settings.ema, clip=settings.gradient_clip)
    network.train()
    if settings.views:
        network.encoders.eval()

    def losses(step: int) -> tuple[str, Tensor]:
        kind, batch = sampler.draw(np.random.default_rng((settings.seed, step)))
        batch = batch.to(device)
        with mixed_precision(device, settings.bf16):
            encodings = _encodings(network, batch)
            fused = network.raw_of(encodings)
        fused = tree_map(lambda output: None if output is None else output.float(), fused)
        loss = fusion_loss(fused, batch, settings, weights)
        if fused.judgement is not None:
            loss = loss + reliability_loss(network, encodings, fused, batch, settings)
        if kind in teachers and settings.keep_weight > 0:
            outputs = batch.reader_outputs.get(kind) or reader_outputs(teachers[kind], batch)
            decides = kind == next(iter(teachers))  # the reader whose heads initialised the network
            loss = loss + settings.keep_weight * distillation_loss(fused, outputs, sentiment=decides)
        return kind, loss

    plain = msgspec.structs.replace(settings, label_smoothing=0.0, variance_weight=0.0, neutral_weight=1.0)

    @torch.inference_mode()
    def validate() -> tuple[float, dict[str, float]]:
        by_kind = {}
        even = torch.ones_like(weights)
        for kind, batches in checks:
            losses = []
            for batch in batches:
                fused = run.averaged.raw_of(_encodings(run.averaged, batch))
                # What users get of several modalities is the decision, which the head on their fused vector may not be.
                answered = fused._replace(logits=fused.decision)
                losses.append(float(fusion_loss(answered, batch, plain, even)) * len(batch.sentiment))
            by_kind[kind] = sum(losses) / sum(len(b.sentiment) for b in batches)
        return sum(by_kind.values()) / len(by_kind), by_kind

    plan = ""
    if state is not None:
        digests = [dataset.digest(), *(tensors_digest(reader) for reader in readers.values())]
        plan = msgspec.json.encode([settings, sorted(specs), digests]).decode()
    fit(run, losses, settings.steps, settings.seed, validate=validate, every=settings.evaluate_every,
        patience=settings.patience, state=state, plan=plan, log_dir=log_dir, report=report)  # fmt: skip
    assert run.best is not None, "the last step is validated"
    run.best_network().cpu()
    return run


def _encodings(network: CMMSF, batch: Batch) -> dict[str, Encoding]:
    """The batch's encodings, computed now unless done beforehand."""
    return batch.encodings or {
        name: network.encode(name, batch.features[name], batch.mask[name]) for name in batch.features
    }


@torch.no_grad()
def _encoded(network: CMMSF, batch: Batch) -> Batch:
    network.eval()
    return replace(batch, features={}, mask={}, encodings=_encodings(network, batch))


def _missing_readers(
    dataset: Dataset, settings: FusionTraining, readers: Mapping[str, Weights], device: torch.device
) -> dict[str, Weights]:
    """Train readers for the modalities that have none."""
    made: dict[str, Weights] = {}
    for name in [name for name in dataset.specs if name not in readers]:
        alone = msgspec.structs.replace(
            settings,
            views=0,
            kinds={name: 1.0},
            steps=settings.reader_steps,
            evaluate_every=max(1, settings.reader_steps // 4),
            model=msgspec.structs.replace(settings.model, reliability=False),
        )
        log.info("training the reader of %s", name)
        made[name] = train_fusion(dataset.only([name]), alone, device=device).averaged.state_dict()
    return made


def _optimizer(network: CMMSF, settings: FusionTraining, loaded: set[str]) -> torch.optim.AdamW:
    groups = []
    for known, rate in ((False, 1.0), (True, settings.trained_rate)):
        part = [p for name, p in network.named_parameters() if p.requires_grad and (name in loaded) == known]
        groups += decay_groups(part, settings.weight_decay, rate * settings.learning_rate)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
