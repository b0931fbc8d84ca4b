"""Fine-tuning the text encoder on labelled sentences, so that word states carry sentiment and emotion.

Only low-rank adapters are shipped. Trained on labels alone they gain on one corpus and lose on another. So fully tuned
teachers, one per task, come first; the adapters learn from their outputs on all sentences (Hinton et al., 2015), and
from the labels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mien.messages import EMOTIONS, Float32
from mien.models.architecture import Count, ModelConfig
from mien.models.data.corpora import Corpus, CorpusItem
from mien.models.text.encoder import WordTokenizer
from mien.models.text.minilm import adapter_state, add_adapters, load_minilm, save_adapters
from mien.models.training.loop import Progress
from mien.models.training.text_batches import SamplingConfig, TeacherTargets, batches, sentences, sentences_digest
from mien.models.training.text_tuning import SentenceTuner, Tuning, normalise, predict, tune
from mien.models.weights.tensors import write_tensors

READER = "reader.safetensors"  # CM-MSF with text as its only modality, trained with the adapters

log = logging.getLogger(__name__)

SENTIMENT, EMOTION = "sentiment", "emotion"


@dataclass(frozen=True)
class Teacher(Tuning):
    """How one teacher is tuned.

    Attributes:
        name: of its folder. teaches: "sentiment" or "emotion". corpora: to learn from; missing ones are left out.
    """

    name: str = ""
    teaches: str = SENTIMENT
    corpora: tuple[str, ...] = ()
    epochs: Count = 3
    learning_rate: float = 4e-4
    encoder_rate: float = 0.125


TEACHERS = (
    Teacher(name="sentiment", teaches=SENTIMENT, corpora=("mosi", "mosei", "sst5"),
            sampling=SamplingConfig(repeats=(("mosi", 3.0),), misheard=0.1)),
    Teacher(name="emotion", teaches=EMOTION, corpora=("meld", "goemotions"), emotion_weight=1.0,
            sampling=SamplingConfig(repeats=(("meld", 2.0), ("goemotions", 0.4)), misheard=0.1)),
)  # fmt: skip


def teacher_targets(
    teachers: Sequence[Teacher],
    train: dict[str, list[CorpusItem]],
    valid: dict[str, list[CorpusItem]],
    tokenizer: WordTokenizer,
    base: Path,
    work: Path,
    model: ModelConfig,
    device: torch.device,
    report: Progress | None = None,
) -> TeacherTargets | None:
    """The teachers' outputs on every training text, averaged per task. None without a teacher.

    A teacher is trained unless its outputs are in `work` already.
    """
    texts = sorted({item.text or "" for items in train.values() for item in items})
    outputs: dict[str, list[Float32]] = {SENTIMENT: [], EMOTION: []}
    for teacher in teachers:
        own = {name: items for name, items in train.items() if name in teacher.corpora}
        checked = {name: items for name, items in valid.items() if name in teacher.corpora}
        if not (own and checked):
            continue
        key = hashlib.sha256(
            json.dumps([asdict(teacher), texts, str(model), sentences_digest(own, checked)]).encode()
        ).hexdigest()
        path = work / f"{teacher.name}-{key[:16]}.safetensors"
        try:
            made: Float32 = load_file(path)[teacher.teaches]
        except (OSError, SafetensorError, KeyError):
            log.info("teacher of %s", teacher.name)
            torch.manual_seed(teacher.seed)
            tuner = SentenceTuner(load_minilm(base, dropout=teacher.dropout), model).to(device)
            normalise(tuner, batches(own, tokenizer, teacher.sampling, teacher.seed, 0))
            whole = list(tuner.encoder.parameters())
            run = tune(f"teacher of {teacher.name}", tuner, whole, own, checked, tokenizer, teacher,
                       path.with_suffix(".state"), report=report)  # fmt: skip
            sentiments, logits = predict(run.averaged, texts, tokenizer)
            made = sentiments if teacher.teaches == SENTIMENT else torch.from_numpy(logits).softmax(1).numpy()
            write_tensors(path, {teacher.teaches: torch.from_numpy(made)})
        outputs[teacher.teaches].append(made)
    if not any(outputs.values()):
        return None
    sentiment = np.mean(outputs[SENTIMENT] or [np.full(len(texts), np.nan, np.float32)], axis=0)
    emotions = np.mean(outputs[EMOTION] or [np.zeros((len(texts), len(EMOTIONS)), np.float32)], axis=0)
    return TeacherTargets({text: row for row, text in enumerate(texts)}, sentiment, emotions)


@dataclass(frozen=True)
class TextTraining(Tuning):
    """How the adapters are trained. `rank`: of each. `teachers`: without any they learn from labels alone."""

    learning_rate: float = 6e-4
    taught_weight: float = 1.0
    rank: int = 64
    teachers: tuple[Teacher, ...] = TEACHERS
    threads: int = 1


def train_text(
    corpora: Sequence[Corpus],
    base: Path,
    out: Path,
    work: Path,
    options: TextTraining | None = None,
    model: ModelConfig | None = None,
    device: torch.device | None = None,
    report: Progress | None = None,
) -> list[dict[str, float]]:
    """Fine-tune, and write the adapters of the epoch with the lowest validation loss to `out`.

    Args:
        corpora: with text, and "train" and "valid" splits between them; "test" is never read.
        base: folder of the base model. work: for the teachers, and for the state to resume a stopped run from.
        model: sizes of CM-MSF, whose text reader is trained jointly and written to `work` (READER).
        device: default: the CPU (see `training_device`).

    Returns:
        validation figures of each epoch.

    Raises:
        DataError: no text to train or to validate on, or `work` holds the state of a run with other options.
    """
    options, model = options or TextTraining(), model or ModelConfig()
    device = device or torch.device("cpu")
    torch.set_num_threads(options.threads)
    tokenizer = WordTokenizer(base)
    train, valid = sentences(corpora, "train"), sentences(corpora, "valid")
    targets = teacher_targets(options.teachers, train, valid, tokenizer, base, work / "teachers", model, device, report)
    torch.manual_seed(options.seed)
    tuner = SentenceTuner(load_minilm(base, dropout=options.dropout), model).to(device)
    normalise(tuner, batches(train, tokenizer, options.sampling, options.seed, 0))
    tuned = add_adapters(tuner.encoder, options.rank)
    tuner.to(device)  # the adapters were drawn on the CPU
    run = tune("text", tuner, tuned, train, valid, tokenizer, options, work / "text.state", targets, report)
    assert run.best is not None, "every epoch is validated"
    best = run.best_network().cpu()
    card: dict[str, object] = {"corpora": sorted(train), "options": asdict(options), "valid": run.best.figures}
    save_adapters(adapter_state(best.encoder), load_minilm(base), out, card)
    write_tensors(work / READER, best.reader.state_dict())
    return [evaluation.figures for evaluation in run.history]
