"""Training of the face encoder on aligned crops, labelled with annotators' votes.

A larger encoder is trained first, as the teacher. The smaller, shipped one learns mostly from the teacher's outputs on
the crops that it sees (Hinton et al., 2015; Beyer et al., 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.errors import DataError
from mien.messages import EMOTIONS, Float32, Int64, UInt8
from mien.models.architecture import Count, Natural
from mien.models.face import FaceCNN, FaceConfig, load_face, save_face
from mien.models.training.device import mixed_precision
from mien.models.training.face_augmentation import augment
from mien.models.training.loop import Evaluation, Progress, Run, class_weights, decay_groups, fit, warm_cosine


class FaceTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training settings.

    Attributes:
        epochs, teacher_epochs: of the shipped encoder and of its teacher; 0 teacher epochs mean no teacher.
        teacher_channels, teacher_blocks, teacher_dropout: see `FaceConfig`.
        learning_rate: the peak, reached after a `warmup` fraction of all steps.
        balance: exponent of the inverse class frequencies that weight emotions; 0 none, 1 fully balanced.
        taught: weight of the teacher's outputs, at `temperature`, against the votes' `1 - taught`.
        own: weight of the corpus's own label, from before the votes.
        damaged: fraction of crops that are damaged (see `face_augmentation`). flattened: how far the votes of the most
            damaged ones are moved towards a uniform distribution.
        ema: decay of the averaged weights, which are validated and saved.
        bf16: compute in bfloat16; None: if the device supports it in hardware.
    """

    epochs: Count = 80
    teacher_epochs: Natural = 60
    teacher_channels: tuple[int, ...] = (64, 128, 256)
    teacher_blocks: tuple[int, ...] = (2, 3, 3)
    teacher_dropout: float = 0.4
    batch: Count = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.15
    balance: float = 0.25
    taught: float = 0.7
    temperature: float = 2.0
    own: float = 0.1
    damaged: float = 0.25
    flattened: float = 0.3
    ema: float = 0.999
    bf16: bool | None = None


@dataclass(frozen=True, eq=False)
class Faces:
    """Labelled faces.

    Attributes:
        crops: (n, 48, 48) uint8, as `aligned_crop` cuts them.
        shares: (n, 7) of the votes, in the order of EMOTIONS, summing to 1.
        sure: (n,) index of the emotion that most annotators agree on, -1 where they do not.
        own: (n,) index of the corpus's own label, from before the votes, -1 without one.
    """

    crops: UInt8
    shares: Float32
    sure: Int64
    own: Int64

    def __post_init__(self) -> None:
        crops, count = self.crops, len(self.crops)
        if crops.ndim != 3 or crops.dtype != np.uint8 or crops.shape[1:] != (48, 48):
            raise DataError(f"face crops must be (n, 48, 48) uint8, not {crops.shape} {crops.dtype}")
        if not count:
            raise DataError("there are no face crops")
        if self.shares.shape != (count, len(EMOTIONS)) or not np.allclose(self.shares.sum(1), 1, atol=1e-3):
            raise DataError(f"{count} face crops need as many rows of {len(EMOTIONS)} shares that sum to 1")
        for labels in (self.sure, self.own):
            if labels.shape != (count,) or labels.min() < -1 or labels.max() >= len(EMOTIONS):
                raise DataError(f"labels of {count} faces must be as many of -1 ... {len(EMOTIONS) - 1}")


def train_face(
    train: Faces,
    valid: Faces,
    out: Path,
    *,
    seed: int = 1111,
    config: FaceConfig | None = None,
    training: FaceTraining | None = None,
    work: Path | None = None,
    device: torch.device | None = None,
    report: Progress | None = None,
    notes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Train the teacher and the face encoder, and write the weights of the encoder's best epoch.

    Args:
        train, valid: faces; those of `valid` are never trained on.
        out: path of the weights.
        work: folder for the teacher's weights and the state for resuming a stopped run; None: nothing is stored, and
            nothing is resumed.
        device: default: the CPU (see `training_device`).
        report: called after each epoch with "face" or "teacher of faces", finished epochs, and all epochs.
        notes: stored in the weights.

    Returns:
        Validation metrics of the saved weights, see `evaluate_face`.

    Raises:
        DataError: the state belongs to another run.
    """
    training, device, config = training or FaceTraining(), device or torch.device("cpu"), config or FaceConfig()
    teacher = None
    if training.teacher_epochs:
        large = msgspec.structs.replace(config, channels=training.teacher_channels, blocks=training.teacher_blocks,
                                        dropout=training.teacher_dropout)  # fmt: skip
        kept = None if work is None else work / "face-teacher.safetensors"
        if kept is None or not kept.is_file():
            run = _train("teacher of faces", train, valid, large, training, training.teacher_epochs, seed, None, device,
                         None if kept is None else kept.with_suffix(".state"), report)  # fmt: skip
            teacher = run.averaged
            if kept is not None:
                save_face(teacher, kept)
        if kept is not None:  # in half precision, like what a resumed run loads
            teacher = _placed(load_face(kept), device)
    state = None if work is None else work / "face.state"
    run = _train("face", train, valid, config, training, training.epochs, seed, teacher, device, state, report)
    assert run.best is not None, "every epoch is validated"
    epoch = run.history.index(run.best) + 1
    save_face(run.best_network(), out, {"seed": str(seed), **(notes or {}), "epoch": str(epoch)})
    # Evaluate the saved weights: half precision, computed in single precision as on the live path.
    return evaluate_face(load_face(out), valid)


def _train(
    name: str,
    train: Faces,
    valid: Faces,
    config: FaceConfig,
    training: FaceTraining,
    epochs: int,
    seed: int,
    teacher: FaceCNN | None,
    device: torch.device,
    state: Path | None,
    report: Progress | None,
) -> Run[FaceCNN]:
    torch.manual_seed(seed)
    count = len(train.crops)
    crops, shares, own = (torch.from_numpy(part).to(device) for part in (train.crops, train.shares, train.own))
    # (7,) per class, of the votes and of the corpus's own labels.
    counted = torch.bincount(own[own >= 0].cpu(), minlength=len(EMOTIONS)).float()
    weights, own_weights = (
        class_weights(counts, training.balance).to(device) for counts in (shares.cpu().sum(0), counted)
    )
    network = _placed(FaceCNN(config), device).train()
    size = count // training.batch or 1  # steps per epoch
    groups = decay_groups(list(network.parameters()), training.weight_decay, training.learning_rate)
    optimizer = torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum, nesterov=True)
    schedule = warm_cosine(epochs * size, training.warmup * epochs * size)
    run = Run(network, optimizer, schedule, decay=training.ema, clip=5.0, ramp=50)
    generator, order = torch.Generator(device), torch.arange(count, device=device)

    def losses(step: int) -> tuple[str, Tensor]:
        nonlocal order
        if step % size == 0:
            generator.manual_seed(seed * 100_003 + step // size)
            order = torch.randperm(count, generator=generator, device=device)
        chosen = order[step % size * training.batch :][: training.batch]
        return name, _loss(network, crops[chosen], shares[chosen], own[chosen], weights, own_weights, teacher,
                           generator, training)  # fmt: skip

    def validate() -> tuple[float, dict[str, float]]:
        metrics = evaluate_face(run.averaged, valid, bf16=training.bf16)
        return metrics["loss"], {"accuracy": metrics["accuracy"], "UAR": metrics["uar"], "own UAR": metrics["own_uar"]}

    def epoch_done(step: int, _: int, evaluation: Evaluation | None) -> None:
        if report is not None and evaluation is not None:
            report(name, step // size, epochs)

    plan = f"{name} {msgspec.json.encode(training).decode()} seed {seed} epochs {epochs} faces {count}"
    fit(run, losses, epochs * size, seed, validate=validate, every=size, state=state, plan=plan, report=epoch_done)
    return run


def _loss(
    model: FaceCNN, crops: Tensor, shares: Tensor, labels: Tensor, weights: Tensor, own_weights: Tensor,
    teacher: FaceCNN | None, generator: torch.Generator, training: FaceTraining,
) -> Tensor:  # fmt: skip
    """Class-weighted cross-entropy with the votes and with the corpus's own label; divergence from the teacher."""
    with torch.no_grad():
        crops, severity = augment(_as_input(crops), generator, training.damaged)
        crops = crops.contiguous(memory_format=torch.channels_last)
        even = (training.flattened * severity.square())[:, None]
        shares = shares * (1 - even) + even / len(EMOTIONS)
    with mixed_precision(crops.device, training.bf16):
        embedding, logits = model(crops)
        own = model.classify_own(embedding)
        with torch.no_grad():
            expected = None if teacher is None else teacher(crops)[1].float()
    logits, own = logits.float(), own.float()
    loss: Tensor = -(shares * weights * logits.log_softmax(1)).sum(1).mean()
    if expected is not None:
        hot = training.temperature
        soft = (expected / hot).softmax(1) * (1 - even) + even / len(EMOTIONS)
        divergence = F.kl_div((logits / hot).log_softmax(1), soft, reduction="batchmean")
        loss = (1 - training.taught) * loss + training.taught * hot**2 * divergence
    wrong = F.cross_entropy(own, labels.clamp(min=0), own_weights, reduction="none", label_smoothing=0.1)
    return loss + training.own * (wrong * (labels >= 0)).mean()


@torch.inference_mode()
def evaluate_face(model: FaceCNN, faces: Faces, *, bf16: bool | None = False) -> dict[str, Any]:
    """Metrics of an encoder, computed on its device.

    Returns:
        loss: cross-entropy with the vote shares.
        accuracy, uar: on faces whose annotators agree; `uar` is the mean recall over the emotions that occur.
        recalls: of each emotion, in the order of EMOTIONS; NaN if it does not occur.
        own_accuracy, own_uar: the second head's, against the corpus's own labels; NaN without any.
    """
    model.eval()
    device = next(model.parameters()).device
    parts: list[tuple[Tensor, Tensor]] = []
    for crops in torch.split(torch.from_numpy(faces.crops), 512):
        with mixed_precision(device, bf16):
            embedding, logits = model(_as_input(crops.to(device)))
            parts.append((logits.float().cpu(), model.classify_own(embedding).float().cpu()))
    logits, own = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])
    loss = -(torch.from_numpy(faces.shares) * logits.log_softmax(1)).sum(1).mean()
    accuracy, recalls = _recalls(logits, torch.from_numpy(faces.sure))
    own_accuracy, own_recalls = _recalls(own, torch.from_numpy(faces.own))
    uar, own_uar = (float(np.nanmean(r)) if not np.isnan(r).all() else math.nan for r in (recalls, own_recalls))
    return {"loss": float(loss), "accuracy": accuracy, "uar": uar, "recalls": tuple(recalls),
            "own_accuracy": own_accuracy, "own_uar": own_uar}  # fmt: skip


def _recalls(logits: Tensor, truth: Tensor) -> tuple[float, list[float]]:
    known = truth >= 0
    right = (logits.argmax(1) == truth)[known].float()
    return float(right.mean()), [float(right[truth[known] == label].mean()) for label in range(len(EMOTIONS))]


def _placed(model: FaceCNN, device: torch.device) -> FaceCNN:
    """Move to the device, channels last: the fastest layout for convolutions of small images."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _as_input(crops: Tensor) -> Tensor:
    """(B, 48, 48) uint8 to the network's input, channels last."""
    return crops[:, None].float().contiguous(memory_format=torch.channels_last)
