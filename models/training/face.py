"""Training of the face encoder on aligned crops and what annotators voted for each.

A larger encoder is trained first. The smaller one, which ships, learns mostly what that one says of each crop that it
sees (Hinton et al., 2015; Beyer et al., 2022).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from mien.errors import DataError
from mien.messages import EMOTIONS, Float32
from mien.models.face import FaceCNN, FaceConfig, load_face, save_face
from mien.models.training.device import mixed_precision
from mien.models.training.face_augmentation import augment
from mien.models.weights.tensors import write_tensors

log = logging.getLogger(__name__)
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


class FaceTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to train.

    Attributes:
        epochs, teacher_epochs: of the encoder that ships, and of its teacher; without the latter there is no teacher.
        teacher_channels, teacher_blocks, teacher_dropout: see `FaceConfig`.
        learning_rate: its peak; it rises over `warmup` (a share of all steps) and falls to zero along a cosine.
        balance: exponent of the class weights `(mean share / share) ** balance`; 0 leaves classes as they are, 1 makes
            them count alike.
        taught: weight of what the teacher says, against the votes' `1 - taught`. temperature: at which it says it.
        own: weight of the label that a corpus had before it was voted on.
        damaged: share of crops that are made hard to see (see `face_augmentation`). flattened: how far their votes are
            moved towards an even share of all emotions where they are hardest to see.
        ema: decay of the averaged weights, which are what is validated and kept.
        bf16: compute in bfloat16; None: where the device multiplies in it.
    """

    epochs: int = 80
    teacher_epochs: int = 60
    teacher_channels: tuple[int, ...] = (64, 128, 256)
    teacher_blocks: tuple[int, ...] = (2, 3, 3)
    teacher_dropout: float = 0.4
    batch: int = 256
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
        own: (n,) index of the label that the corpus had before it was voted on, -1 where it had none.
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


@dataclass(frozen=True)
class FaceMetrics:
    """How an encoder does on faces.

    Attributes:
        loss: cross-entropy with the shares of votes.
        accuracy, uar: where annotators agree; `uar` is the mean recall over the emotions that occur.
        recalls: of each emotion, in the order of EMOTIONS; NaN for one that does not occur.
        own_accuracy, own_uar: the second head's, on the labels that the corpus had before; NaN without any.
    """

    loss: float
    accuracy: float
    uar: float
    recalls: tuple[float, ...] = ()
    own_accuracy: float = math.nan
    own_uar: float = math.nan


@dataclass
class _Run:
    """What changes while training, and what a resumed run reads back."""

    model: FaceCNN
    average: FaceCNN
    velocity: list[Tensor]
    epoch: int = 0
    best_loss: float = math.inf


@dataclass(frozen=True, eq=False)
class _Lesson:
    """The training faces on the device, and who teaches. `weights`, `own_weights`: (7,) of the classes."""

    crops: Tensor
    shares: Tensor
    own: Tensor
    weights: Tensor
    own_weights: Tensor
    teacher: FaceCNN | None


Report = Callable[[str, int, int], None]


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
    report: Report | None = None,
    notes: dict[str, str] | None = None,
) -> FaceMetrics:
    """Train the teacher and the face encoder, and write the encoder's weights of the epoch with the lowest loss.

    Args:
        train, valid: faces; those of `valid` are never trained on.
        out: where the weights go.
        work: folder of the teacher's weights and of the state that a stopped run is continued from; None: nothing is
            kept, and nothing is continued.
        device: where to compute, the processor by default (see `training_device`).
        report: called after each epoch with who is trained, the epochs done, and all epochs.
        notes: that go into the weights.

    Returns:
        Validation metrics of what was written.

    Raises:
        DataError: a state of another run.
    """
    training, device, config = training or FaceTraining(), device or torch.device("cpu"), config or FaceConfig()
    teacher = None
    if training.teacher_epochs:
        large = msgspec.structs.replace(config, channels=training.teacher_channels, blocks=training.teacher_blocks,
                                        dropout=training.teacher_dropout)  # fmt: skip
        taught = None if work is None else work / "face-teacher.safetensors"
        teacher = _teacher(train, valid, taught, large, training, seed, device, report)
    lesson = _lesson(train, training, teacher, device)
    state = None if work is None else work / "face.state"

    def save(model: FaceCNN, epoch: int) -> None:
        save_face(model, out, {"seed": str(seed), **(notes or {}), "epoch": str(epoch)})

    _fit("face", lesson, valid, config, training, training.epochs, seed, device, state, report, save)
    # What counts is what was written: half precision, evaluated in single precision as the live path does.
    return evaluate_face(load_face(out), valid)


def _teacher(
    train: Faces,
    valid: Faces,
    kept: Path | None,
    config: FaceConfig,
    training: FaceTraining,
    seed: int,
    device: torch.device,
    report: Report | None,
) -> FaceCNN:
    if kept is not None and kept.is_file():
        return _placed(load_face(kept), device)
    state = None if kept is None else kept.with_suffix(".state")
    run = _fit(
        "teacher of faces", _lesson(train, training, None, device), valid, config, training,
        training.teacher_epochs, seed, device, state, report, None,
    )  # fmt: skip
    if kept is not None:
        save_face(run.average, kept)
        return _placed(load_face(kept), device)
    return run.average.eval()


def _fit(
    name: str,
    lesson: _Lesson,
    valid: Faces,
    config: FaceConfig,
    training: FaceTraining,
    epochs: int,
    seed: int,
    device: torch.device,
    state: Path | None,
    report: Report | None,
    save: Callable[[FaceCNN, int], None] | None,
) -> _Run:
    """Train one encoder; `save` is given the averaged weights of each epoch that is the best so far."""
    torch.manual_seed(seed)
    model, average = _placed(FaceCNN(config), device), _placed(FaceCNN(config), device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    run = _Run(model, average, [torch.zeros_like(value) for value in model.parameters()])
    plan = f"{name} {msgspec.json.encode(training).decode()} seed {seed} epochs {epochs} faces {len(lesson.crops)}"
    if state is not None and state.exists():
        _restore(run, state, plan)
        log.info("continuing %s after epoch %d", state, run.epoch)
    steps = len(lesson.crops) // training.batch or 1
    while run.epoch < epochs:
        # One generator an epoch, not one a run: a resumed epoch then draws what it would have drawn.
        generator = torch.Generator(device).manual_seed(seed * 100_003 + run.epoch)
        torch.manual_seed(seed * 100_003 + run.epoch)
        order = torch.randperm(len(lesson.crops), generator=generator, device=device)
        total = torch.zeros((), device=device)
        model.train()
        for index in range(steps):
            rate = _learning_rate(training, (run.epoch * steps + index) / (epochs * steps))
            chosen = order[index * training.batch : (index + 1) * training.batch]
            loss = _loss(model, lesson, chosen, generator, training)
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            _descend(run, training, rate, run.epoch * steps + index)
            total += loss.detach()
        run.epoch += 1
        metrics = evaluate_face(run.average, valid, bf16=training.bf16)
        if metrics.loss < run.best_loss:
            run.best_loss = metrics.loss
            if save is not None:
                save(run.average, run.epoch)
        if state is not None:
            _store(run, state, plan)
        log.info(
            "%s, epoch %d/%d: loss %.4f, valid loss %.4f, accuracy %.4f, UAR %.4f (own labels %.4f, %.4f)",
            name, run.epoch, epochs, float(total) / steps, metrics.loss, metrics.accuracy, metrics.uar,
            metrics.own_accuracy, metrics.own_uar,
        )  # fmt: skip
        if report is not None:
            report(name, run.epoch, epochs)
    if state is not None:
        state.unlink(missing_ok=True)
    return run


def _lesson(faces: Faces, training: FaceTraining, teacher: FaceCNN | None, device: torch.device) -> _Lesson:
    shares, own = torch.from_numpy(faces.shares), torch.from_numpy(faces.own)
    counted = torch.bincount(own[own >= 0], minlength=len(EMOTIONS)).float()
    balanced = [_weights(counts, training.balance) for counts in (shares.sum(0), counted)]
    parts = (part.to(device) for part in (torch.from_numpy(faces.crops), shares, own, *balanced))
    crops, shares, own, weights, own_weights = parts
    return _Lesson(crops, shares, own, weights, own_weights, teacher)


def _weights(counts: Tensor, balance: float) -> Tensor:
    weights = (counts.mean() / counts.clamp(min=1.0)) ** balance
    return weights / (weights * counts).sum() * counts.sum()  # so that it changes no learning rate


def _loss(
    model: FaceCNN, lesson: _Lesson, chosen: Tensor, generator: torch.Generator, training: FaceTraining
) -> Tensor:
    """Cross-entropy with the votes, weighted by class, and with the corpus's own label; divergence from the teacher."""
    with torch.no_grad():
        crops, severity = augment(_as_input(lesson.crops[chosen]), generator, training.damaged)
        crops = crops.contiguous(memory_format=torch.channels_last)
        even = (training.flattened * severity.square())[:, None]
        shares = lesson.shares[chosen] * (1 - even) + even / len(EMOTIONS)
    with mixed_precision(crops.device, training.bf16):
        embedding, logits = model(crops)
        own = model.classify_own(embedding)
        with torch.no_grad():
            said = None if lesson.teacher is None else lesson.teacher(crops)[1].float()
    logits, own = logits.float(), own.float()
    loss: Tensor = -(shares * lesson.weights * logits.log_softmax(1)).sum(1).mean()
    if said is not None:
        hot = training.temperature
        told = (said / hot).softmax(1) * (1 - even) + even / len(EMOTIONS)
        apart = F.kl_div((logits / hot).log_softmax(1), told, reduction="batchmean")
        loss = (1 - training.taught) * loss + training.taught * hot**2 * apart
    labels = lesson.own[chosen]
    wrong = F.cross_entropy(own, labels.clamp(min=0), lesson.own_weights, reduction="none", label_smoothing=0.1)
    return loss + training.own * (wrong * (labels >= 0)).mean()


@torch.inference_mode()
def evaluate_face(model: FaceCNN, faces: Faces, *, bf16: bool | None = False) -> FaceMetrics:
    """How an encoder does on faces, where the encoder is."""
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
    return FaceMetrics(float(loss), accuracy, uar, tuple(recalls), own_accuracy, own_uar)


def _recalls(logits: Tensor, truth: Tensor) -> tuple[float, list[float]]:
    known = truth >= 0
    right = (logits.argmax(1) == truth)[known].float()
    return float(right.mean()), [float(right[truth[known] == label].mean()) for label in range(len(EMOTIONS))]


def _placed(model: FaceCNN, device: torch.device) -> FaceCNN:
    """On its device, channels last: the order in which convolutions of small pictures are fastest."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _as_input(crops: Tensor) -> Tensor:
    """(B, 48, 48) uint8 to what the network takes, channels last."""
    return crops[:, None].float().contiguous(memory_format=torch.channels_last)


def _learning_rate(training: FaceTraining, progress: float) -> float:
    """`progress`: share of all steps that are done."""
    if progress < training.warmup:
        return training.learning_rate * (0.04 + 0.96 * progress / training.warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - training.warmup) / (1 - training.warmup)))


@torch.no_grad()
def _descend(run: _Run, training: FaceTraining, rate: float, step: int) -> None:
    """One step of SGD with Nesterov momentum, on gradients of a norm of at most 5, and of the averaged weights."""
    values: list[Tensor] = list(run.model.parameters())
    torch.nn.utils.clip_grad_norm_(values, 5.0)
    gradients = [value.grad for value in values if value.grad is not None]
    assert len(gradients) == len(values)
    matrices = [n for n, value in enumerate(values) if value.ndim > 1]
    torch._foreach_add_([gradients[n] for n in matrices], [values[n] for n in matrices], alpha=training.weight_decay)
    torch._foreach_mul_(run.velocity, training.momentum)
    torch._foreach_add_(run.velocity, gradients)
    torch._foreach_add_(gradients, run.velocity, alpha=training.momentum)
    torch._foreach_add_(values, gradients, alpha=-rate)
    # The average follows quickly at first, or it would remember the random start for epochs.
    decay = min(training.ema, (1 + step) / (50 + step))
    pairs = zip(run.average.state_dict().values(), run.model.state_dict().values(), strict=True)
    kept, current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(list(kept), list(current), 1 - decay)


def _store(run: _Run, path: Path, plan: str) -> None:
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.state_dict().items()}
    tensors |= {f"velocity.{n}": value for n, value in enumerate(run.velocity)}
    metadata = {"plan": plan, "epoch": str(run.epoch), "best": repr(run.best_loss)}
    write_tensors(path, tensors, metadata)


def _restore(run: _Run, path: Path, plan: str) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot continue from {path}: {error}; remove it to begin anew") from error
    if metadata.get("plan") != plan:
        raise DataError(f"{path} belongs to a run with other settings; remove it to begin anew")
    for part, module in (("model.", run.model), ("average.", run.average)):
        module.load_state_dict({name.removeprefix(part): v for name, v in tensors.items() if name.startswith(part)})
    for n, value in enumerate(run.velocity):
        value.copy_(tensors[f"velocity.{n}"])
    run.epoch = int(metadata["epoch"])
    run.best_loss = float(metadata["best"])
