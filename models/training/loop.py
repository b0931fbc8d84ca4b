"""The training loop of every network: gradient steps, weight averaging, validation, logging, and resuming.

Averaged weights do better than the raw ones (Polyak & Juditsky, 1992), so their exponential moving average is
validated and kept. The same seed gives bit-identical weights on one machine, resumed or not: all randomness comes
from generators seeded by the seed and the step.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from mien.errors import DataError
from mien.models.architecture import Count, Natural
from mien.models.weights.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

LOG_STEPS = 100

Network = TypeVar("Network", bound=nn.Module)


class Descent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of training on batches of rows. `learning_rate`: the peak, after the warm-up of `warm_cosine`."""

    seed: Natural = 1111
    steps: Count = 3000
    batch: Count = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    threads: Count = 1


@dataclass(frozen=True)
class Evaluation:
    """Validation of the averaged weights after `step` steps: the loss to minimise, and figures for display."""

    step: int
    loss: float
    figures: dict[str, float] = field(default_factory=dict)


# Called after each step: its number, the total (of those done, if a run stops early), and the validation that
# followed it, if any.
Report = Callable[[int, int, Evaluation | None], None]
# What is being trained, how much of it is done, and the total.
Progress = Callable[[str, int, int], None]


def part(progress: Progress | None, name: str) -> Callable[..., None] | None:
    """The report of one part of a longer task, for callees that report only numbers."""
    return None if progress is None else lambda done, total, *_: progress(name, done, total)


def warm_cosine(steps: int, warm_up: float, floor: float = 0.0) -> Callable[[int], float]:
    """Learning rate factor by step: linear warm-up over `warm_up` steps, then a cosine from 1 to `floor`."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        done = min(1.0, (step - warm_up) / max(1.0, steps - warm_up))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def decay_groups(parameters: Sequence[Tensor], weight_decay: float, learning_rate: float) -> list[dict[str, Any]]:
    """Optimiser parameter groups: weight decay for matrices, none for biases and norms."""
    groups = [([p for p in parameters if (p.ndim > 1) == matrix], decay) for matrix, decay in
              ((True, weight_decay), (False, 0.0))]  # fmt: skip
    return [{"params": part, "weight_decay": decay, "lr": learning_rate} for part, decay in groups if part]


def class_weights(counts: Tensor, exponent: float) -> Tensor:
    """Class weights (K,) from `counts` (K,): `count ** -exponent`.

    Their mean over all items is 1, so that the learning rate is unaffected. An exponent of 0 means no weighting, 1
    equal weight for all classes.
    """
    counts = counts.clamp(min=1.0)
    weights = counts**-exponent
    return weights * counts.sum() / (weights * counts).sum()


class Run(Generic[Network]):
    """A network in training: its optimiser, schedule and averaged weights.

    Args:
        network: on its device. Parameters without gradients are neither stored nor changed.
        schedule: factor on every group's learning rate, by step.
        decay: of the average; less at first, `(1 + n) / (ramp + n)` after n steps, to forget the random start.
        clip: maximum gradient norm.
    """

    def __init__(
        self,
        network: Network,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        *,
        decay: float,
        clip: float,
        ramp: int = 10,
    ) -> None:
        @torch.no_grad()
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], number: Tensor | int) -> None:
            if averaged[0].is_floating_point():
                keep = min(decay, (1 + int(number)) / (ramp + int(number)))
                torch._foreach_lerp_(list(averaged), list(current), 1.0 - keep)
            else:
                torch._foreach_copy_(list(averaged), list(current))

        self.network, self._optimizer, self._clip = network, optimizer, clip
        self._average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self._schedule = LambdaLR(optimizer, schedule)
        self._frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self._best = self._changing(self.averaged)
        self.step = 0
        self.history: list[Evaluation] = []

    @property
    def averaged(self) -> Network:
        """The network with averaged weights, in evaluation mode."""
        return cast(Network, self._average.module.eval())

    @property
    def best(self) -> Evaluation | None:
        """The validation with the lowest loss, the first if several are equal."""
        return min(self.history, key=lambda evaluation: evaluation.loss, default=None)

    @property
    def stale(self) -> int:
        return len(self.history) - 1 - self.history.index(self.best) if self.best else 0

    def best_network(self) -> Network:
        """Load the weights of the best validation into the averaged network, and return it."""
        self.averaged.load_state_dict(self._best, strict=False)
        return self.averaged

    def descend(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self._clip)
        self._optimizer.step()
        self._schedule.step()
        self._average.update_parameters(self.network)
        self.step += 1

    def judge(self, loss: float, figures: Mapping[str, float]) -> Evaluation:
        """Record a validation, and keep the averaged weights if it is the best so far."""
        evaluation = Evaluation(self.step, loss, dict(figures))
        self.history.append(evaluation)
        if self.stale == 0:
            self._best = self._changing(self.averaged)
        return evaluation

    def _changing(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in network.state_dict().items() if name not in self._frozen}

    def store(self, path: Path, plan: str) -> None:
        """Write the training state to `path`. `plan` identifies the run's settings and data."""
        tensors = {f"network.{name}": tensor for name, tensor in self._changing(self.network).items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._changing(self.averaged).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        state = {"schedule": self._schedule.state_dict(), "history": [asdict(entry) for entry in self.history]}
        write_tensors(path, tensors, {"plan": plan, "step": str(self.step), "state": json.dumps(state)})

    def restore(self, path: Path, plan: str) -> None:
        """Resume from a file of `store`.

        Raises:
            DataError: the file is damaged, or from a run with other settings or data.
        """
        tensors, metadata = read_tensors(path, "the state of a stopped run (remove it to start again),", DataError)
        if metadata.get("plan") != plan:
            raise DataError(f"{path} belongs to a run with other settings or data; remove it to start again")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("network."), strict=False)
        self.averaged.load_state_dict(part("average."), strict=False)
        self._best = part("best.")
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": optimizer})
        state = json.loads(metadata["state"])
        self._schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.step = int(metadata["step"])
        self._average.n_averaged.fill_(self.step)
        self.history = [Evaluation(**entry) for entry in state["history"]]
        log.info("resumed after step %d", self.step)


def fit(
    run: Run[Any],
    losses: Callable[[int], tuple[str, Tensor]],
    steps: int,
    seed: int,
    *,
    validate: Callable[[], tuple[float, dict[str, float]]] | None = None,
    every: int = 0,
    patience: int | None = None,
    state: Path | None = None,
    plan: str = "",
    log_dir: Path | None = None,
    report: Report | None = None,
) -> None:
    """Train until `steps` are done, or validation has not improved `patience` times.

    Args:
        losses: by step, the name of what it trains and its loss. A resumed run calls it first for the step after a
            validation.
        validate: loss and figures of `run.averaged`, every `every` steps and after the last one.
        state: file for resuming a stopped run, written after each validation and removed at the end.
        log_dir: for TensorBoard.

    Raises:
        DataError: the state belongs to another run.
    """
    if state is not None and state.exists():
        run.restore(state, plan)
    writer = None
    if log_dir is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(log_dir))

    def is_stale() -> bool:
        return patience is not None and run.stale >= patience

    while run.step < steps and not is_stale():
        torch.manual_seed(seed * 1_000_003 + run.step)
        name, loss = losses(run.step)
        run.descend(loss)
        loss = loss.detach()
        evaluation = None
        if validate is not None and (run.step == steps or run.step % every == 0):
            evaluation = run.judge(*validate())
            shown = " ".join(f"{key} {value:.4f}" for key, value in evaluation.figures.items())
            log.info("step %d/%d: %s %.4f, valid %.4f: %s", run.step, steps, name, loss, evaluation.loss, shown)
            if state is not None:
                run.store(state, plan)
        elif run.step % LOG_STEPS == 0:
            log.info("step %d/%d: %s %.4f", run.step, steps, name, loss)
        if writer is not None:
            writer.add_scalar(f"train/{name}", float(loss), run.step)
            if evaluation is not None:
                for key, value in {"loss": evaluation.loss, **evaluation.figures}.items():
                    writer.add_scalar(f"valid/{key}", value, run.step)
        if report is not None:
            report(run.step, run.step if is_stale() else steps, evaluation)
    if writer is not None:
        writer.close()
    if state is not None:
        state.unlink(missing_ok=True)
