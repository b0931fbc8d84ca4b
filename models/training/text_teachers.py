"""Teachers of the text encoder: MiniLM tuned as a whole, each on one thing, to say what it thinks of every sentence.

A teacher need not ship, so that it may be as large as it likes; what it knows is kept as soft labels (Hinton et al.,
2015).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mien.messages import EMOTIONS, Float32
from mien.models.architecture import ModelConfig
from mien.models.data.corpora import CorpusItem
from mien.models.text.encoder import WordTokenizer
from mien.models.text.minilm import load_minilm
from mien.models.training.text_batches import Diet, Lessons, batches, collate
from mien.models.training.text_tuning import SentenceTuner, Tuning, normalise, tune
from mien.models.weights.tensors import write_tensors

log = logging.getLogger(__name__)

SENTIMENT, EMOTION = "sentiment", "emotion"


@dataclass(frozen=True)
class Teacher(Tuning):
    """One of them.

    Attributes:
        name: of its folder. teaches: "sentiment" or "emotion". corpora: that it learns from, those that are not there
            left out.
    """

    name: str = ""
    teaches: str = SENTIMENT
    corpora: tuple[str, ...] = ()
    epochs: int = 3
    learning_rate: float = 4e-4
    encoder_rate: float = 0.125


TEACHERS = (
    Teacher(name="sentiment", teaches=SENTIMENT, corpora=("mosi", "mosei", "sst5"),
            diet=Diet(repeats=(("mosi", 3.0),), misheard=0.1)),
    Teacher(name="emotion", teaches=EMOTION, corpora=("meld", "goemotions"), emotion_weight=1.0,
            diet=Diet(repeats=(("meld", 2.0), ("goemotions", 0.4)), misheard=0.1)),
)  # fmt: skip


def ask(
    teachers: Sequence[Teacher],
    train: dict[str, list[CorpusItem]],
    valid: dict[str, list[CorpusItem]],
    tokenizer: WordTokenizer,
    base: Path,
    work: Path,
    model: ModelConfig,
    device: torch.device,
    report: Callable[[str, int, int], None] | None = None,
) -> Lessons | None:
    """What the teachers say of every training text; those that teach the same are averaged. None without a teacher.

    Each is trained when its lessons are not in `work` yet. `report` is told which, its steps done, and all its steps.
    """
    texts = sorted({item.text or "" for items in train.values() for item in items})
    said: dict[str, list[Float32]] = {SENTIMENT: [], EMOTION: []}
    for teacher in teachers:
        own = {name: items for name, items in train.items() if name in teacher.corpora}
        checked = {name: items for name, items in valid.items() if name in teacher.corpora}
        if own and checked:
            told = None if report is None else partial(report, f"teacher of {teacher.name}")
            lesson = _lessons(teacher, own, checked, texts, tokenizer, base, work, model, device, told)
            said[teacher.teaches].append(lesson)
    if not any(said.values()):
        return None
    sentiment = np.full(len(texts), np.nan, np.float32)
    emotions = np.zeros((len(texts), len(EMOTIONS)), np.float32)
    if said[SENTIMENT]:
        sentiment = np.mean(said[SENTIMENT], axis=0)
    if said[EMOTION]:
        emotions = np.mean(said[EMOTION], axis=0)
    return Lessons({text: row for row, text in enumerate(texts)}, sentiment, emotions)


def _lessons(
    teacher: Teacher,
    train: dict[str, list[CorpusItem]],
    valid: dict[str, list[CorpusItem]],
    texts: Sequence[str],
    tokenizer: WordTokenizer,
    base: Path,
    work: Path,
    model: ModelConfig,
    device: torch.device,
    report: Callable[[int, int], None] | None,
) -> Float32:
    """Sentiment (n,) or shares of emotions (n, 7) of n texts."""
    key = hashlib.sha256(json.dumps([asdict(teacher), list(texts), str(model)]).encode()).hexdigest()
    path = work / f"{teacher.name}-{key[:16]}.safetensors"
    try:
        kept: Float32 = load_file(path)[teacher.teaches]
        return kept
    except (OSError, SafetensorError, KeyError):
        log.info("teacher of %s", teacher.name)
    torch.manual_seed(teacher.seed)
    tuner = SentenceTuner(load_minilm(base, dropout=teacher.dropout), model).to(device)
    normalise(tuner, batches(train, tokenizer, teacher.diet, teacher.seed, 0))
    state = work / key[:16]
    whole = list(tuner.encoder.parameters())
    tune(tuner, whole, train, valid, tokenizer, teacher, state, lambda *_: None, report=report)
    said = _say(tuner, texts, tokenizer)[teacher.teaches]
    write_tensors(path, {teacher.teaches: torch.from_numpy(said)})
    (state / "resume.safetensors").unlink(missing_ok=True)
    return said


@torch.no_grad()
def _say(tuner: SentenceTuner, texts: Sequence[str], tokenizer: WordTokenizer, batch: int = 64) -> dict[str, Float32]:
    tuner.eval()
    pieces = [tokenizer.tokenize_words(text.split()) for text in texts]
    order = sorted(range(len(texts)), key=lambda n: len(pieces[n].input_ids))
    sentiment = np.zeros(len(texts), np.float32)
    emotions = np.zeros((len(texts), len(EMOTIONS)), np.float32)
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        fused = tuner(collate([(CorpusItem("", text=texts[n]), pieces[n]) for n in chosen]).to(tuner.device))
        sentiment[chosen] = fused.sentiment.numpy(force=True)
        emotions[chosen] = fused.logits.softmax(1).numpy(force=True)
    return {SENTIMENT: sentiment, EMOTION: emotions}
