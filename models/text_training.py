"""Tuning the text encoder on labelled sentences, so that word states carry sentiment and emotion.

Several corpora at once: each item brings the labels that it has. What reads the word states meanwhile is CM-MSF with
this one modality, so that the fusion can go on from it: a reader trained afterwards, on states of sentences that the
encoder has learned by heart, trusts them more than it should.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mien.emotions import EMOTIONS
from mien.errors import CheckpointError
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF, Fused
from mien.models.corpora import Corpus, CorpusItem, read_corpus
from mien.models.metrics import emotion_metrics, sentiment_metrics
from mien.models.minilm import MiniLM, adapter_state, add_adapters, load_minilm, save_adapters
from mien.models.text_batches import Batch, Diet, batches, collate, epoch_items, sentences
from mien.models.text_encoder import DEFAULT_ADAPTERS, TEXT_STEPS, WordTokenizer

log = logging.getLogger(__name__)

LOG_STEPS = 100
STATISTICS_BATCHES = 30
TEXT = "text"
READER = "reader.safetensors"  # CM-MSF with text alone, as it was trained along


@dataclass(frozen=True)
class TextTraining:
    """How to tune.

    Attributes:
        temper: exponent of the inverse class frequency that weighs emotions; 0 = none, 1 = fully balanced.
        coarse_weight: of items that say the sign of the sentiment only, relative to those that say its strength.
        average: decay of the running mean of weights, which is what is validated and shipped.
        patience: epochs without a lower validation loss before it stops.
    """

    seed: int = 1111
    epochs: int = 4
    rank: int = 32
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warm_up: float = 0.05
    dropout: float = 0.1
    patience: int = 2
    temper: float = 0.15
    emotion_weight: float = 0.8
    correlation_weight: float = 0.2
    coarse_weight: float = 0.3
    variance_weight: float = 0.1
    average: float = 0.997
    threads: int = 1
    diet: Diet = field(default_factory=Diet)


class SentenceTuner(nn.Module):
    """MiniLM under CM-MSF with text as its only modality."""

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
        with torch.autocast("cpu", torch.bfloat16):
            states = self.encoder(batch.input_ids, batch.attention_mask)
        pieces = (batch.words[:, None] == torch.arange(TEXT_STEPS)[:, None]).float()
        count = pieces.sum(2)
        return (pieces / count.clamp(min=1.0)[..., None]) @ states.float(), (count > 0).float()


def train_text(
    corpora: Sequence[Corpus],
    base: Path,
    out: Path,
    work: Path,
    options: TextTraining | None = None,
    after_epoch: Callable[[int, dict[str, float]], None] | None = None,
    model: ModelConfig | None = None,
) -> list[dict[str, float]]:
    """Tune, and write the adapters of the epoch with the lowest validation loss to `out`.

    Args:
        corpora: with text, and "train" and "valid" splits between them; "test" is never read.
        base: folder of the base model. work: for checkpoints; a run that finds its own there goes on from them.
        model: sizes of CM-MSF, whose reader of text is trained along and left in `work` (READER).
        after_epoch: told the number of each epoch and its validation figures, once its checkpoint is written.

    Returns:
        validation figures of each epoch.

    Raises:
        DataError: no text to train or to validate on.
        CheckpointError: `work` holds a run with other options.
    """
    options = options or TextTraining()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = WordTokenizer(base)
    train, valid = sentences(corpora, "train"), sentences(corpora, "valid")
    tuner = SentenceTuner(load_minilm(base, dropout=options.dropout), model or ModelConfig())
    _normalise(tuner, batches(train, tokenizer, options.diet, options.seed, 0))
    tuned = add_adapters(tuner.encoder, options.rank)
    parameters = [*tuned, *tuner.reader.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )
    mean = [p.detach().clone() for p in parameters]
    class_weights = _class_weights(train, options)
    work.mkdir(parents=True, exist_ok=True)
    history = _resume(work / "resume.safetensors", options, parameters, mean, optimizer)
    steps = max(1, sum(1 for _ in epoch_items(train, options.diet, options.seed, 0)) // options.diet.batch)
    for epoch in range(len(history), options.epochs):
        if epoch - _best(history) > options.patience:
            log.info("no lower validation loss for %d epochs: stopped", options.patience)
            break
        torch.manual_seed(options.seed * 1000 + epoch)
        drawn = list(batches(train, tokenizer, options.diet, options.seed, epoch))
        tuner.train()
        running = 0.0
        shown = track(drawn, f"epoch {epoch + 1}/{options.epochs}", disable=not sys.stderr.isatty())
        for number, batch in enumerate(shown):
            step = epoch * steps + number
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * _schedule(step / (options.epochs * steps), options.warm_up)
            loss = _loss(tuner(batch), batch, class_weights, options)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            decay = min(options.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(mean, [p.detach() for p in parameters], 1 - decay)
            running += loss.item() / LOG_STEPS
            if (number + 1) % LOG_STEPS == 0:
                log.info("epoch %d, batch %d/%d, loss %.4f", epoch + 1, number + 1, len(drawn), running)
                running = 0.0
        live = [p.detach().clone() for p in parameters]
        _assign(parameters, mean)
        figures = validate(tuner, valid, tokenizer)
        log.info("epoch %d: %s", epoch + 1, json.dumps(figures))
        history.append(figures)
        card: dict[str, object] = {"corpora": sorted(train), "options": asdict(options), "valid": figures}
        save_adapters(adapter_state(tuner.encoder), load_minilm(base), work / f"epoch-{epoch + 1}.safetensors", card)
        save_file({n: t.contiguous() for n, t in tuner.reader.state_dict().items()}, work / f"{epoch + 1}-{READER}")
        _assign(parameters, live)
        _save_resume(work / "resume.safetensors", options, parameters, mean, optimizer, history)
        if after_epoch is not None:
            after_epoch(epoch, figures)
    out.parent.mkdir(parents=True, exist_ok=True)
    best = _best(history) + 1
    for made, kept in ((f"epoch-{best}.safetensors", out), (f"{best}-{READER}", work / READER)):
        unfinished = kept.with_name(kept.name + ".part")
        unfinished.write_bytes((work / made).read_bytes())
        unfinished.replace(kept)
    return history


@torch.no_grad()
def _normalise(tuner: SentenceTuner, drawn: Iterator[Batch]) -> None:
    """Scale the reader's input by the word states of the base model in some batches."""
    tuner.eval()
    states = torch.cat([rows[mask > 0] for rows, mask in map(tuner.rows, islice(drawn, STATISTICS_BATCHES))])
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
            fused = tuner(batch)
            sentiment[chosen], logits[chosen] = fused.sentiment.numpy(), fused.logits.numpy()
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


def _loss(fused: Fused, batch: Batch, class_weights: Tensor, options: TextTraining) -> Tensor:
    """Absolute error and correlation of sentiment, a hinge on its sign where only that is known, and cross-entropy."""
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
    weighted = batch.emotions * class_weights
    return loss - options.emotion_weight * (weighted * logits.log_softmax(1)).sum() / size


def _class_weights(corpora: dict[str, list[CorpusItem]], options: TextTraining) -> Tensor:
    counts = np.ones(len(EMOTIONS))
    for name, items in corpora.items():
        for item in items:
            target = item.emotion_target
            if target is not None:
                counts += np.array(target) * options.diet.repeats_of(name)
    weights = (counts.sum() / counts) ** options.temper
    return torch.tensor(weights / (weights * counts).sum() * counts.sum(), dtype=torch.float32)


def _best(history: Sequence[dict[str, float]]) -> int:
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
    options: TextTraining,
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
    unfinished = path.with_name(path.name + ".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, metadata=metadata)
    unfinished.replace(path)


@torch.no_grad()
def _resume(
    path: Path,
    options: TextTraining,
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
                    name: file.get_tensor(f"{n}.{name}") for name in ("step", "exp_avg", "exp_avg_sq")
                }
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from error
    history: list[dict[str, float]] = json.loads(metadata["history"])
    log.info("resumed after %d epochs", len(history))
    return history


def main() -> None:
    """`python -m mien.models.text_training CORPUS... --base FOLDER --work FOLDER`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path, nargs="+", help="MOSI, MOSEI, GoEmotions and MELD tables")
    parser.add_argument("--base", type=Path, required=True, help="folder of MiniLM")
    parser.add_argument("--out", type=Path, default=DEFAULT_ADAPTERS)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log; resumes from there")
    parser.add_argument("--seed", type=int, default=1111)
    parser.add_argument("--epochs", type=int, default=TextTraining.epochs)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(given.work / "training.log", encoding="utf-8"), logging.StreamHandler()],
    )
    options = TextTraining(seed=given.seed, epochs=given.epochs, threads=given.threads)
    train_text([read_corpus(path) for path in given.corpora], given.base, given.out, given.work, options)


if __name__ == "__main__":
    main()
