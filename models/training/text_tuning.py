"""Fine-tuning of the text encoder under CM-MSF, as a whole or by low-rank adapters.

On several corpora at once, each with its own labels. CM-MSF with text as its only modality reads the word states, and
training of the fusion starts from that reader: one trained afterwards, on states of sentences that the encoder has
memorised, would trust them too much.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.messages import EMOTIONS, Float32, ModalitySpec
from mien.models.architecture import Count, ModelConfig, Natural
from mien.models.cmmsf import CMMSF
from mien.models.data.corpora import CorpusItem
from mien.models.evaluation.metrics import emotion_metrics, sentiment_metrics
from mien.models.fusion import Fused
from mien.models.text.encoder import TEXT_STEPS, WordTokenizer
from mien.models.text.minilm import MiniLM
from mien.models.training.device import mixed_precision
from mien.models.training.loop import Progress, Run, class_weights, decay_groups, fit, part, warm_cosine
from mien.models.training.losses import variance_loss
from mien.models.training.text_batches import (
    Batch,
    SamplingConfig,
    TeacherTargets,
    batches,
    collate,
    epoch_items,
    sentences_digest,
)

STATISTICS_BATCHES = 30
PREDICT_BATCH = 64
TEXT = "text"


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning settings.

    Attributes:
        encoder_rate: learning rate of the encoder's weights, as a share of `learning_rate`, the reader's.
        temper: exponent of the inverse class frequencies that weight emotions; 0 = none, 1 = fully balanced.
        coarse_weight: of items with only the sign of the sentiment, relative to the others.
        taught_weight: of the teachers' outputs, relative to the labels of the corpora.
        average: decay of the averaged weights, which are validated and saved.
        patience: epochs without a lower validation loss that end the run.
    """

    seed: Natural = 1111
    epochs: Count = 4
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
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


class SentenceTuner(nn.Module):
    """MiniLM under CM-MSF with text as its only modality."""

    def __init__(self, encoder: MiniLM, model: ModelConfig) -> None:
        super().__init__()
        self.encoder = encoder
        spec = ModalitySpec(name=TEXT, dim=encoder.config.hidden_size, rate_hz=0, steps=TEXT_STEPS, snapshot=True)
        self.reader = CMMSF([spec], model)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: Batch) -> Fused:
        """The heads' outputs for a batch of sentences, before calibration."""
        rows, mask = self.rows(batch)
        return self.reader.raw({TEXT: rows}, {TEXT: mask})

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Word states (B, TEXT_STEPS, 384), each the mean over its pieces, and mask (B, TEXT_STEPS)."""
        with mixed_precision(batch.words.device, bf16=True):
            states = self.encoder(batch.input_ids, batch.attention_mask)
        pieces = (batch.words[:, None] == torch.arange(TEXT_STEPS, device=batch.words.device)[:, None]).float()
        count = pieces.sum(2)
        return (pieces / count.clamp(min=1.0)[..., None]) @ states.float(), (count > 0).float()


def tune(
    name: str,
    tuner: SentenceTuner,
    tuned: Sequence[nn.Parameter],
    train: dict[str, list[CorpusItem]],
    valid: dict[str, list[CorpusItem]],
    tokenizer: WordTokenizer,
    options: Tuning,
    state: Path,
    targets: TeacherTargets | None = None,
    report: Progress | None = None,
) -> Run[SentenceTuner]:
    """Train the encoder's parameters `tuned`, and the whole reader; validate after each epoch.

    Args:
        name: of the model, for logs and reports.
        state: file for resuming a stopped run (see `fit`).
        targets: teachers' outputs on the training texts.

    Returns:
        The run; the figures of its validations are those of `validate`.

    Raises:
        DataError: the state belongs to a run with other options.
    """
    sampling, seed = options.sampling, options.seed
    groups = [
        group
        for members, rate in ((list(tuned), options.encoder_rate), (list(tuner.reader.parameters()), 1.0))
        for group in decay_groups(members, options.weight_decay, rate * options.learning_rate)
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
    size = math.ceil(sum(1 for _ in epoch_items(train, sampling, seed, 0)) / sampling.batch)  # steps per epoch
    schedule = warm_cosine(options.epochs * size, options.warm_up * options.epochs * size)
    run = Run(tuner.train(), optimizer, schedule, decay=options.average, clip=1.0)
    counts = sum((torch.tensor(item.emotion_target) * sampling.repeats_of(corpus) for corpus, items in train.items()
                  for item in items if item.emotion_target is not None), torch.ones(len(EMOTIONS)))  # fmt: skip
    weights = class_weights(counts, options.temper).to(tuner.device)
    epoch: Iterator[Batch] = iter(())

    def losses(step: int) -> tuple[str, Tensor]:
        nonlocal epoch
        if step % size == 0:
            epoch = batches(train, tokenizer, sampling, seed, step // size, targets)
        batch = next(epoch).to(tuner.device)
        return name, _loss(tuner(batch), batch, weights, options)

    state.parent.mkdir(parents=True, exist_ok=True)
    plan = json.dumps([asdict(options), sentences_digest(train, valid)])
    fit(
        run, losses, options.epochs * size, seed, validate=lambda: validate(run.averaged, valid, tokenizer), every=size,
        patience=options.patience, state=state, plan=plan, report=part(report, name),
    )  # fmt: skip
    return run


@torch.no_grad()
def normalise(tuner: SentenceTuner, drawn: Iterator[Batch]) -> None:
    """Fit the reader's input normalisation to the base model's word states in some batches."""
    tuner.eval()
    shown = (tuner.rows(batch.to(tuner.device)) for batch in islice(drawn, STATISTICS_BATCHES))
    states = torch.cat([rows[mask > 0] for rows, mask in shown])
    # Some columns of the base model hardly vary; without a bound, tuning would move them by many deviations.
    tuner.reader.normalise({TEXT: (states.mean(0), states.std(0).clamp(min=0.05))})


@torch.no_grad()
def predict(tuner: SentenceTuner, texts: Sequence[str], tokenizer: WordTokenizer) -> tuple[Float32, Float32]:
    """Sentiment (n,) and emotion logits (n, 7) of n texts."""
    tuner.eval()
    pieces = [tokenizer.tokenize_words(text.split()) for text in texts]
    order = sorted(range(len(texts)), key=lambda n: len(pieces[n].input_ids))
    sentiment, logits = np.zeros(len(texts), np.float32), np.zeros((len(texts), len(EMOTIONS)), np.float32)
    for begin in range(0, len(order), PREDICT_BATCH):
        chosen = order[begin : begin + PREDICT_BATCH]
        fused = tuner(collate([(CorpusItem("", text=texts[n]), pieces[n]) for n in chosen]).to(tuner.device))
        sentiment[chosen], logits[chosen] = fused.sentiment.numpy(force=True), fused.logits.numpy(force=True)
    return sentiment, logits


def validate(
    tuner: SentenceTuner, corpora: dict[str, list[CorpusItem]], tokenizer: WordTokenizer
) -> tuple[float, dict[str, float]]:
    """The mean of each corpus's own loss (absolute error, or cross-entropy), and figures by corpus with that "loss"."""
    figures: dict[str, float] = {}
    losses: list[float] = []
    for name, items in sorted(corpora.items()):
        sentiment, logits = predict(tuner, [item.text or "" for item in items], tokenizer)
        fine = [n for n, item in enumerate(items) if item.sentiment is not None and not item.coarse]
        if fine:
            metrics = sentiment_metrics([items[n].sentiment or 0.0 for n in fine], sentiment[fine].clip(-3, 3))
            figures |= {
                f"{name}.mae": metrics.mae,
                f"{name}.has0_acc2": metrics.has0_accuracy,
                f"{name}.non0_acc2": metrics.non0_accuracy,
                f"{name}.r": metrics.correlation,
            }
            losses.append(metrics.mae)
        sure = [n for n, item in enumerate(items) if item.emotion is not None]
        if sure:
            truth = torch.tensor([EMOTIONS.index(items[n].emotion or "") for n in sure])
            scores = torch.from_numpy(logits[sure])
            named = emotion_metrics(truth.numpy(), scores.softmax(1).numpy())
            figures |= {f"{name}.wf1": named.weighted_f1, f"{name}.uar": named.uar}
            losses.append(float(F.cross_entropy(scores, truth)))
            figures[f"{name}.entropy"] = losses[-1]
    figures["loss"] = float(np.mean(losses))
    figures = {name: round(value, 4) for name, value in figures.items()}
    return figures["loss"], figures


def _loss(fused: Fused, batch: Batch, class_weights: Tensor, options: Tuning) -> Tensor:
    """The loss on sentiment and emotions, against the labels and the teachers.

    Absolute error and correlation of sentiment, a hinge if only its sign is known, and cross-entropy of emotions; for
    the teachers, error and cross-entropy.
    """
    sentiment, logits = fused.sentiment, fused.logits
    size = len(sentiment)
    known = ~batch.sentiment.isnan()
    fine, coarse = known & ~batch.coarse, known & batch.coarse
    error = (sentiment - batch.sentiment)[fine].abs()
    loss = error.sum() / size
    loss = loss + options.variance_weight * variance_loss(fused.log_variance[fine], error).sum() / size
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
        likelihood = (batch.taught_emotions * log_shares).sum()
        loss = loss + options.taught_weight * (gap - options.emotion_weight * likelihood) / size
    return loss
