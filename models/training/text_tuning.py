"""How a text encoder is tuned under CM-MSF: one loop for whoever is tuned, as a whole or by low-rank adapters.

Several corpora at once: each item brings the labels that it has. What reads the word states meanwhile is CM-MSF with
this one modality, so that the fusion can go on from it: a reader trained afterwards, on states of sentences that the
encoder has learned by heart, trusts them more than it should.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mien.errors import CheckpointError
from mien.messages import EMOTIONS, ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.corpora import CorpusItem
from mien.models.evaluation.metrics import emotion_metrics, sentiment_metrics
from mien.models.fusion import Fused
from mien.models.text.encoder import TEXT_STEPS, WordTokenizer
from mien.models.text.minilm import MiniLM
from mien.models.training.device import mixed_precision
from mien.models.training.text_batches import Batch, Diet, Lessons, batches, collate, epoch_items
from mien.models.weights.tensors import write_tensors

log = logging.getLogger(__name__)

LOG_STEPS = 100
STATISTICS_BATCHES = 30
TEXT = "text"


@dataclass(frozen=True)
class Tuning:
    """How to tune.

    Attributes:
        encoder_rate: learning rate of the encoder's weights, as a share of `learning_rate`, the reader's.
        temper: exponent of the inverse class frequency that weighs emotions; 0 = none, 1 = fully balanced.
        coarse_weight: of items that say the sign of the sentiment only, relative to those that say its strength.
        taught_weight: of what teachers say, relative to what is written in the corpora.
        average: decay of the running mean of weights, which is what is validated and kept.
        patience: epochs without a lower validation loss before it stops.
    """

    seed: int = 1111
    epochs: int = 4
    learning_rate: float = 8e-4
    encoder_rate: float = 1.0
    weight_decay: float = 0.01
    warm_up: float = 0.05
    dropout: float = 0.1
    patience: int = 2
    temper: float = 0.15
    emotion_weight: float = 0.8
    correlation_weight: float = 0.2
    coarse_weight: float = 0.3
    variance_weight: float = 0.1
    taught_weight: float = 0.0
    average: float = 0.997
    diet: Diet = field(default_factory=Diet)


class SentenceTuner(nn.Module):
    """MiniLM under CM-MSF with text as its only modality."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def __init__(self, encoder: MiniLM, model: ModelConfig) -> None:
        super().__init__()
        self.encoder = encoder
        spec = ModalitySpec(name=TEXT, dim=encoder.config.hidden_size, rate_hz=0, steps=TEXT_STEPS, snapshot=True)
        self.reader = CMMSF([spec], model)

    def forward(self, batch: Batch) -> Fused:
        """The heads of a batch of sentences, before calibration."""
        rows, mask = self.rows(batch)
        return self.reader.raw({TEXT: rows}, {TEXT: mask})

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Word states (B, TEXT_STEPS, 384), each the mean of its pieces', and mask (B, TEXT_STEPS)."""
        with mixed_precision(batch.words.device, bf16=True):
            states = self.encoder(batch.input_ids, batch.attention_mask)
        pieces = (batch.words[:, None] == torch.arange(TEXT_STEPS, device=batch.words.device)[:, None]).float()
        count = pieces.sum(2)
        return (pieces / count.clamp(min=1.0)[..., None]) @ states.float(), (count > 0).float()


def tune(
    tuner: SentenceTuner,
    tuned: Sequence[nn.Parameter],
    train: dict[str, list[CorpusItem]],
    valid: dict[str, list[CorpusItem]],
    tokenizer: WordTokenizer,
    options: Tuning,
    work: Path,
    keep: Callable[[int, dict[str, float]], None],
    lessons: Lessons | None = None,
    after_epoch: Callable[[int, dict[str, float]], None] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[dict[str, float]]:
    """Tune the encoder's parameters `tuned`, and the whole reader.

    Args:
        work: for the state of the run; one that finds its own there goes on from it.
        keep: called after each epoch with its number and its validation figures, while the tuner holds the averaged
            weights.
        lessons: what teachers say of the texts.
        after_epoch: told the same once the state of the run is written.
        report: called after each step with the steps done and the steps of all epochs. After the last step of a run
            that stops early the latter are the steps done.

    Returns:
        validation figures of each epoch.

    Raises:
        CheckpointError: `work` holds a run with other options.
    """
    encoder, reader = list(tuned), list(tuner.reader.parameters())
    parameters = [*encoder, *reader]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in part if (p.ndim > 1) == matrix], "scale": scale, "weight_decay": decay}
            for part, scale in ((encoder, options.encoder_rate), (reader, 1.0))
            for matrix, decay in ((True, options.weight_decay), (False, 0.0))
        ],
        lr=options.learning_rate,
        fused=True,
    )
    mean = [p.detach().clone() for p in parameters]
    class_weights = _class_weights(train, options).to(tuner.device)
    work.mkdir(parents=True, exist_ok=True)
    state = work / "resume.safetensors"
    history = _resume(state, options, parameters, mean, optimizer)
    steps = max(1, sum(1 for _ in epoch_items(train, options.diet, options.seed, 0)) // options.diet.batch)
    for epoch in range(len(history), options.epochs):
        if _is_stale(history, options):
            break
        torch.manual_seed(options.seed * 1000 + epoch)
        drawn = list(batches(train, tokenizer, options.diet, options.seed, epoch, lessons))
        tuner.train()
        running = 0.0
        for number, batch in enumerate(drawn):
            step = epoch * steps + number
            rate = options.learning_rate * _schedule(step / (options.epochs * steps), options.warm_up)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            batch = batch.to(tuner.device)
            loss = _loss(tuner(batch), batch, class_weights, options)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            decay = min(options.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(mean, [p.detach() for p in parameters], 1 - decay)
            running += loss.item() / LOG_STEPS
            # Only validation tells whether an epoch was the last, so its last step is reported after that.
            if report is not None and number + 1 < len(drawn):
                report(epoch * len(drawn) + number + 1, options.epochs * len(drawn))
            if (number + 1) % LOG_STEPS == 0:
                log.info("epoch %d, batch %d/%d, loss %.4f", epoch + 1, number + 1, len(drawn), running)
                running = 0.0
        live = [p.detach().clone() for p in parameters]
        _assign(parameters, mean)
        figures = validate(tuner, valid, tokenizer)
        log.info("epoch %d: %s", epoch + 1, json.dumps(figures))
        history.append(figures)
        keep(epoch, figures)
        _assign(parameters, live)
        _save_resume(state, options, parameters, mean, optimizer, history)
        if report is not None:
            done = (epoch + 1) * len(drawn)
            report(done, done if _is_stale(history, options) else options.epochs * len(drawn))
        if after_epoch is not None:
            after_epoch(epoch, figures)
    if len(history) < options.epochs:
        log.info("no lower validation loss for %d epochs: stopped after %d", options.patience, len(history))
    _assign(parameters, mean)
    return history


def _is_stale(history: Sequence[dict[str, float]], options: Tuning) -> bool:
    return len(history) - best_epoch(history) > options.patience


@torch.no_grad()
def normalise(tuner: SentenceTuner, drawn: Iterator[Batch]) -> None:
    """Scale the reader's input by the word states of the base model in some batches."""
    tuner.eval()
    shown = (tuner.rows(batch.to(tuner.device)) for batch in islice(drawn, STATISTICS_BATCHES))
    states = torch.cat([rows[mask > 0] for rows, mask in shown])
    # Some columns of the base model hardly move, and what tuning does to them is not to be blown up.
    tuner.reader.normalise({TEXT: (states.mean(0), states.std(0).clamp(min=0.05))})


@torch.no_grad()
def validate(
    tuner: SentenceTuner,
    corpora: dict[str, list[CorpusItem]],
    tokenizer: WordTokenizer,
) -> dict[str, float]:
    """Figures by corpus, and "loss": mean of every corpus's own (absolute error, or cross-entropy)."""
    tuner.eval()
    figures: dict[str, float] = {}
    losses: list[float] = []
    for name, items in sorted(corpora.items()):
        order = sorted(range(len(items)), key=lambda n: len(items[n].text or ""))
        sentiment, logits = np.zeros(len(items)), np.zeros((len(items), len(EMOTIONS)))
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = collate([(items[n], tokenizer.tokenize_words((items[n].text or "").split())) for n in chosen])
            fused = tuner(batch.to(tuner.device))
            sentiment[chosen], logits[chosen] = fused.sentiment.numpy(force=True), fused.logits.numpy(force=True)
        fine = [n for n, item in enumerate(items) if item.sentiment is not None and not item.coarse]
        if fine:
            felt = sentiment_metrics([items[n].sentiment or 0.0 for n in fine], sentiment[fine].clip(-3, 3))
            figures |= {
                f"{name}.mae": felt.mae,
                f"{name}.has0_acc2": felt.has0_accuracy,
                f"{name}.non0_acc2": felt.non0_accuracy,
                f"{name}.r": felt.correlation,
            }
            losses.append(felt.mae)
        sure = [n for n, item in enumerate(items) if item.emotion is not None]
        if sure:
            truth = torch.tensor([EMOTIONS.index(items[n].emotion or "") for n in sure])
            scores = torch.from_numpy(logits[sure])
            named = emotion_metrics(truth.numpy(), scores.softmax(1).numpy())
            figures |= {f"{name}.wf1": named.weighted_f1, f"{name}.uar": named.uar}
            losses.append(float(F.cross_entropy(scores, truth)))
            figures[f"{name}.entropy"] = losses[-1]
    figures["loss"] = float(np.mean(losses))
    return {name: round(value, 4) for name, value in figures.items()}


def _loss(fused: Fused, batch: Batch, class_weights: Tensor, options: Tuning) -> Tensor:
    """Absolute error and correlation of sentiment, a hinge on its sign where only that is known, and cross-entropy; and
    the same against what teachers say."""
    sentiment, logits = fused.sentiment, fused.logits
    size = len(sentiment)
    known = ~batch.sentiment.isnan()
    fine, coarse = known & ~batch.coarse, known & batch.coarse
    error = (sentiment - batch.sentiment)[fine].abs()
    loss = error.sum() / size
    # The variance learns from the error and not the error from the variance.
    log_variance = fused.log_variance[fine].clamp(-6, 6)
    spread = 0.5 * (error.detach().square() * torch.exp(-log_variance) + log_variance)
    loss = loss + options.variance_weight * spread.sum() / size
    if int(fine.sum()) >= 4:
        pair = torch.stack([sentiment[fine], batch.sentiment[fine]])
        pair = pair - pair.mean(1, keepdim=True)
        norms = pair.square().sum(1).clamp_min(1e-3).sqrt()
        loss = loss + options.correlation_weight * (1 - (pair[0] * pair[1]).sum() / norms.prod()) * fine.sum() / size
    sign, guess = batch.sentiment[coarse].sign(), sentiment[coarse]
    hinge = torch.where(sign == 0, (guess.abs() - 0.4).clamp_min(0), (0.4 - sign * guess).clamp_min(0))
    loss = loss + options.coarse_weight * hinge.sum() / size
    log_shares = logits.log_softmax(1)
    loss = loss - options.emotion_weight * (batch.emotions * class_weights * log_shares).sum() / size
    if options.taught_weight > 0:
        taught = ~batch.taught_sentiment.isnan()
        gap = (sentiment - batch.taught_sentiment)[taught].abs().sum()
        said = (batch.taught_emotions * log_shares).sum()
        loss = loss + options.taught_weight * (gap - options.emotion_weight * said) / size
    return loss


def _class_weights(corpora: dict[str, list[CorpusItem]], options: Tuning) -> Tensor:
    counts = np.ones(len(EMOTIONS))
    for name, items in corpora.items():
        for item in items:
            target = item.emotion_target
            if target is not None:
                counts += np.array(target) * options.diet.repeats_of(name)
    weights = (counts.sum() / counts) ** options.temper
    return torch.tensor(weights / (weights * counts).sum() * counts.sum(), dtype=torch.float32)


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """The epoch with the lowest validation loss."""
    return min(range(len(history)), key=lambda epoch: history[epoch]["loss"], default=0)


def _schedule(progress: float, warm_up: float) -> float:
    """Linear rise, then cosine to zero."""
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _save_resume(
    path: Path,
    options: Tuning,
    parameters: Sequence[nn.Parameter],
    mean: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    history: Sequence[dict[str, float]],
) -> None:
    tensors: dict[str, Tensor] = {}
    for n, (parameter, average) in enumerate(zip(parameters, mean, strict=True)):
        tensors |= {f"{n}.value": parameter.detach(), f"{n}.mean": average}
        tensors |= {f"{n}.{name}": value for name, value in optimizer.state[parameter].items()}
    metadata = {"options": json.dumps(asdict(options)), "history": json.dumps(history)}
    write_tensors(path, tensors, metadata)


@torch.no_grad()
def _resume(
    path: Path,
    options: Tuning,
    parameters: Sequence[nn.Parameter],
    mean: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> list[dict[str, float]]:
    """Lay a saved run over a fresh one. Returns the epochs that it has done."""
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["options"] != json.dumps(asdict(options)):
                raise CheckpointError(f"{path} is of a run with other options; give another work folder")
            stored = set(file.keys())
            for n, (parameter, average) in enumerate(zip(parameters, mean, strict=True)):
                parameter.copy_(file.get_tensor(f"{n}.value"))
                average.copy_(file.get_tensor(f"{n}.mean"))
                if f"{n}.step" not in stored:
                    continue  # a part of CM-MSF that a single modality does not use
                optimizer.state[parameter] = {
                    name: file.get_tensor(f"{n}.{name}").to(parameter.device)
                    for name in ("step", "exp_avg", "exp_avg_sq")
                }
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from error
    history: list[dict[str, float]] = json.loads(metadata["history"])
    log.info("resumed after %d epochs", len(history))
    return history
