"""Teachers of the text encoder: fully tuned MiniLMs, each on one task.

Their outputs on all training texts are soft labels for the shipped adapters (Hinton et al., 2015).
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
from mien.models.data.corpora import CorpusItem
from mien.models.text.encoder import WordTokenizer
from mien.models.text.minilm import load_minilm
from mien.models.training.loop import Progress
from mien.models.training.text_batches import SamplingConfig, TeacherTargets, batches, sentences_digest
from mien.models.training.text_tuning import SentenceTuner, Tuning, normalise, predict, tune
from mien.models.weights.tensors import write_tensors

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
    sentiment = np.full(len(texts), np.nan, np.float32)
    emotions = np.zeros((len(texts), len(EMOTIONS)), np.float32)
    if outputs[SENTIMENT]:
        sentiment = np.mean(outputs[SENTIMENT], axis=0)
    if outputs[EMOTION]:
        emotions = np.mean(outputs[EMOTION], axis=0)
    return TeacherTargets({text: row for row, text in enumerate(texts)}, sentiment, emotions)
