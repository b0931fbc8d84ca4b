"""Training of the face encoder on labelled, aligned crops."""

from __future__ import annotations

import bisect
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from mien.emotions import EMOTIONS
from mien.errors import DataError
from mien.models.face import FaceCNN, FaceConfig, load_face, save_face
from mien.models.tensors import write_tensors
from mien.models.training_device import mixed_precision

log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


class FaceTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to train.

    Attributes:
        learning_rate: its peak; it rises over `warmup` (a share of a cycle) and falls to zero along a cosine.
        restarts: epochs after which a new cycle begins, with `restart_decay` times the peak of the one before
            (Loshchilov & Hutter, SGDR, ICLR 2017).
        balance: exponent of the class weights `(mean count / count) ** balance`; 0 leaves classes as they are, 1 makes
            them count alike.
        ema: decay of the averaged weights, which are what is validated and kept.
        bf16: compute in bfloat16; None: where the device multiplies in it.
    """

    epochs: int = 36
    batch: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.1
    restarts: tuple[int, ...] = (20,)
    restart_decay: float = 0.5
    label_smoothing: float = 0.1
    balance: float = 0.33
    ema: float = 0.998
    bf16: bool | None = None


@dataclass(frozen=True)
class FaceMetrics:
    """How an encoder does. `uar`: mean recall over the emotions that occur. `loss`: plain cross-entropy."""

    loss: float
    accuracy: float
    uar: float


@dataclass
class _Run:
    """What changes while training, and what a resumed run reads back."""

    model: FaceCNN
    average: FaceCNN
    velocity: dict[str, Tensor]
    epoch: int = 0
    best: FaceMetrics = field(default_factory=lambda: FaceMetrics(math.inf, 0.0, 0.0))


def train_face(
    images: UInt8,
    labels: Int64,
    valid_images: UInt8,
    valid_labels: Int64,
    out: Path,
    *,
    seed: int = 1111,
    epochs: int | None = None,
    config: FaceConfig | None = None,
    training: FaceTraining | None = None,
    state: Path | None = None,
    device: torch.device | None = None,
    report: Callable[[int, int, FaceMetrics], None] | None = None,
) -> FaceMetrics:
    """Train a face encoder and write the weights of the epoch with the lowest validation loss.

    Args:
        images: (n, 48, 48) uint8 crops as `aligned_crop` cuts them. labels: (n,) indices into EMOTIONS.
        valid_images, valid_labels: the same, never trained on.
        out: where the weights go.
        state: file that a stopped run is continued from, and that is removed at the end; None never resumes.
        device: where to compute, the processor by default (see `training_device`).
        report: called after each epoch with its number, their count, and the metrics.

    Returns:
        Validation metrics of what was written.

    Raises:
        DataError: arrays that do not belong together, or a state of another run.
    """
    training, device = training or FaceTraining(), device or torch.device("cpu")
    epochs = training.epochs if epochs is None else epochs
    _check(images, labels)
    _check(valid_images, valid_labels)
    torch.manual_seed(seed)
    model = _placed(FaceCNN(config), device)
    average = _placed(FaceCNN(config), device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    velocity = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    run = _Run(model, average, velocity)
    plan = f"{msgspec.json.encode(training).decode()} seed {seed} epochs {epochs} images {len(images)}"
    if state is not None and state.exists():
        _restore(run, state, plan)
        log.info("continuing %s after epoch %d", state, run.epoch)
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    weights = _class_weights(labels, training.balance).to(device)
    steps = math.ceil(len(images) / training.batch)
    while run.epoch < epochs:
        started = time.monotonic()
        # One generator an epoch, not one a run: a resumed epoch then draws what it would have drawn.
        generator = torch.Generator().manual_seed(seed * 100_003 + run.epoch)
        torch.manual_seed(seed * 100_003 + run.epoch)
        total = 0.0
        model.train()
        for index, (crops, soft) in enumerate(_batches(pixels, targets, training, generator)):
            step = run.epoch * steps + index
            rate = _learning_rate(training, run.epoch + index / steps, epochs)
            with mixed_precision(device, training.bf16):
                _, logits = model(crops.to(device))
            loss = _weighted_loss(logits.float(), soft.to(device), weights)
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            _descend(run, training, rate, step)
            total += float(loss.detach())
        run.epoch += 1
        metrics = evaluate_face(run.average, valid_images, valid_labels, device=device, bf16=training.bf16)
        if metrics.loss < run.best.loss:
            run.best = metrics
            save_face(run.average, out, {"seed": str(seed), "epoch": str(run.epoch)})
        if state is not None:
            _store(run, state, plan)
        log.info(
            "epoch %d/%d train loss %.4f valid loss %.4f accuracy %.4f UAR %.4f rate %.4f in %.0f s",
            run.epoch, epochs, total / steps, metrics.loss, metrics.accuracy, metrics.uar, rate,
            time.monotonic() - started,
        )  # fmt: skip
        if report is not None:
            report(run.epoch, epochs, metrics)
    if state is not None:
        state.unlink(missing_ok=True)
    # What counts is what was written: half precision, evaluated in single precision as the live path does.
    return evaluate_face(load_face(out), valid_images, valid_labels)


@torch.inference_mode()
def evaluate_face(
    model: FaceCNN, images: UInt8, labels: Int64, *, device: torch.device | None = None, bf16: bool | None = False
) -> FaceMetrics:
    """Cross-entropy, accuracy and UAR of an encoder on crops (n, 48, 48) uint8 with labels (n,)."""
    _check(images, labels)
    model.eval()
    device = device or torch.device("cpu")
    parts = []
    for crops in torch.split(torch.from_numpy(images), 256):
        with mixed_precision(device, bf16):
            parts.append(model(_as_input(crops).to(device))[1].float().cpu())
    logits, truth = torch.cat(parts), torch.from_numpy(labels)
    right = logits.argmax(dim=1) == truth
    recalls = [float(right[truth == int(label)].float().mean()) for label in np.unique(labels)]
    return FaceMetrics(float(F.cross_entropy(logits, truth)), float(right.float().mean()), sum(recalls) / len(recalls))


def _placed(model: FaceCNN, device: torch.device) -> FaceCNN:
    """On its device, channels last: the order in which convolutions of small pictures are fastest."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _check(images: UInt8, labels: Int64) -> None:
    if images.ndim != 3 or images.dtype != np.uint8 or images.shape[1:] != (48, 48):
        raise DataError(f"face crops must be (n, 48, 48) uint8, not {images.shape} {images.dtype}")
    if labels.shape != (len(images),) or not len(images):
        raise DataError(f"{len(images)} face crops need as many labels, and at least one; there are {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(EMOTIONS):
        raise DataError(f"face labels must be 0 ... {len(EMOTIONS) - 1}, the order of mien.emotions.EMOTIONS")


def _as_input(crops: Tensor) -> Tensor:
    """(B, 48, 48) uint8 to what the network takes, channels last."""
    return crops[:, None].float().contiguous(memory_format=torch.channels_last)


def _batches(
    pixels: Tensor, targets: Tensor, training: FaceTraining, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented crops (B, 1, 48, 48) and soft labels (B, 7)."""
    order = torch.randperm(len(pixels), generator=generator)
    spread = training.label_smoothing / len(EMOTIONS)
    for chosen in torch.split(order, training.batch):
        if len(chosen) == 1:
            continue  # a batch norm has no variance of one
        crops = augment(_as_input(pixels[chosen]), generator)
        soft = F.one_hot(targets[chosen], len(EMOTIONS)).float() * (1 - training.label_smoothing) + spread
        yield crops, soft


def augment(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Crops (B, 1, 48, 48) as another camera might have seen them.

    Mirrored, turned up to 12 degrees, scaled by up to 12 %, shifted up to 3 pixels, with another gamma, some blur and
    noise, and a rectangle covered. Everything is drawn from `generator`.
    """
    count, _, side, _ = crops.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle = uniform(-1, 1) * math.radians(12)
    scale = uniform(0.88, 1.12)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = angle.cos() * scale * mirror
    affine[:, 0, 1] = -angle.sin() * scale
    affine[:, 1, 0] = angle.sin() * scale * mirror
    affine[:, 1, 1] = angle.cos() * scale
    affine[:, :, 2] = uniform(-1, 1, 2) * (2 * 3 / side)
    grid = F.affine_grid(affine, [count, 1, side, side], align_corners=False)
    moved = F.grid_sample(crops.contiguous(), grid, padding_mode="border", align_corners=False)
    gamma = uniform(-0.5, 0.5, 1, 1, 1).exp()
    toned = (moved / 255).clamp(1e-4, 1) ** gamma * 255
    blurred = F.avg_pool2d(F.pad(toned, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    toned = torch.where(uniform(0, 1, 1, 1, 1) < 0.15, blurred, toned)
    noise = torch.randn(toned.shape, generator=generator) * uniform(0, 8, 1, 1, 1)
    toned = torch.where(uniform(0, 1, 1, 1, 1) < 0.3, toned + noise, toned)
    return _cover(toned, uniform).contiguous(memory_format=torch.channels_last)


def _cover(crops: Tensor, uniform: Callable[..., Tensor]) -> Tensor:
    """Two fifths of the crops with a rectangle of a sixth to two fifths of their side in their own mean grey."""
    side = crops.shape[-1]
    axis = torch.arange(side)
    inside = []
    for _ in range(2):
        length = uniform(side / 6, side * 2 / 5, 1)
        first = uniform(0, 1, 1) * (side - length)
        inside.append((axis >= first) & (axis < first + length))
    covered = (inside[0][:, :, None] & inside[1][:, None, :])[:, None] & (uniform(0, 1, 1, 1, 1) < 0.4)
    return torch.where(covered, crops.mean(dim=(2, 3), keepdim=True), crops)


def _class_weights(labels: Int64, balance: float) -> Tensor:
    counts = np.maximum(np.bincount(labels, minlength=len(EMOTIONS)), 1).astype(np.float64)
    return torch.tensor((counts.mean() / counts) ** balance, dtype=torch.float32)


def _weighted_loss(logits: Tensor, soft: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with soft labels (B, 7), each label's share counting by its class weight."""
    share = soft * weights
    return -(share * F.log_softmax(logits, dim=1)).sum() / share.sum()


def _learning_rate(training: FaceTraining, epoch: float, epochs: int) -> float:
    """`epoch`: how many are done, with fractions, of `epochs`."""
    bounds = [0, *(restart for restart in sorted(training.restarts) if restart < epochs), epochs]
    cycle = bisect.bisect_right(bounds, epoch) - 1
    peak = training.learning_rate * training.restart_decay**cycle
    done = (epoch - bounds[cycle]) / (bounds[cycle + 1] - bounds[cycle])
    if done < training.warmup:
        return peak * (0.04 + 0.96 * done / training.warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - training.warmup) / (1 - training.warmup)))


@torch.no_grad()
def _descend(run: _Run, training: FaceTraining, rate: float, step: int) -> None:
    """One step of SGD with Nesterov momentum, and of the averaged weights."""
    for name, parameter in run.model.named_parameters():
        if parameter.grad is None:
            continue
        gradient = parameter.grad
        if parameter.ndim > 1:
            gradient = gradient + training.weight_decay * parameter
        velocity = run.velocity[name].mul_(training.momentum).add_(gradient)
        parameter.sub_(gradient + training.momentum * velocity, alpha=rate)
    # The average follows quickly at first, or it would remember the random start for epochs.
    decay = min(training.ema, (1 + step) / (10 + step))
    current = run.model.state_dict()
    for name, kept in run.average.state_dict().items():
        if kept.is_floating_point():
            kept.lerp_(current[name], 1 - decay)


def _store(run: _Run, path: Path, plan: str) -> None:
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.state_dict().items()}
    tensors |= {f"velocity.{name}": value for name, value in run.velocity.items()}
    metadata = {
        "plan": plan,
        "epoch": str(run.epoch),
        "best": msgspec.json.encode(run.best).decode(),
    }
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
    for name, value in run.velocity.items():
        value.copy_(tensors[f"velocity.{name}"])
    run.epoch = int(metadata["epoch"])
    run.best = msgspec.json.decode(metadata["best"], type=FaceMetrics)
