"""Sentences of several corpora, cut into shuffled batches.

Live text is often partial, unpunctuated and misrecognised. Part of the training text is therefore cut, stripped to a
recogniser's output format, and given recognition errors; the more words are wrong, the softer its labels become.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mien.errors import DataError
from mien.messages import EMOTIONS, Float32
from mien.models.architecture import Count
from mien.models.data.corpora import Corpus, CorpusItem
from mien.models.text.encoder import TEXT_STEPS, Pieces, WordTokenizer


@dataclass(frozen=True)
class SamplingConfig:
    """Composition of an epoch.

    Attributes:
        batch: sentences in a batch.
        repeats: passes over a corpus per epoch, 1 if not named; a fraction takes a new part each time.
        bare, cut: fraction of sentences stripped of punctuation, and cut to a part of their words.
        misheard: fraction of sentences with recognition errors, at a word error rate drawn from `word_errors`.
    """

    batch: Count = 32
    repeats: tuple[tuple[str, float], ...] = (("mosi", 3.0), ("meld", 1.25), ("goemotions", 0.25), ("sst5", 1.0))
    bare: float = 0.35
    cut: float = 0.2
    misheard: float = 0.25
    word_errors: tuple[float, float] = (0.1, 0.6)

    def repeats_of(self, corpus: str) -> float:
        return dict(self.repeats).get(corpus, 1.0)


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """The teachers' outputs on texts.

    Attributes:
        rows: row of each text. sentiment: (n,), -3 ... 3, NaN without a teacher of it. emotions: (n, 7), probabilities,
            all zero without a teacher of them.
    """

    rows: dict[str, int]
    sentiment: Float32
    emotions: Float32


@dataclass(frozen=True)
class Batch:
    """Padded pieces (B, T) and the labels of B sentences. `words` (B, T) is each piece's word, -1 for none."""

    input_ids: Tensor
    attention_mask: Tensor
    words: Tensor
    sentiment: Tensor  # (B,), NaN if unknown
    coarse: Tensor  # (B,), bool
    emotions: Tensor  # (B, 7), all zero if unknown
    taught_sentiment: Tensor  # (B,), NaN without a teacher
    taught_emotions: Tensor  # (B, 7), all zero without a teacher

    def to(self, device: torch.device) -> Batch:
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def bare_words(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Mimic a recogniser's output: no punctuation but apostrophes, and 4 % of the words lost."""
    kept = plain_words(words)
    return [word for word in kept if rng.random() > 0.04] or kept or list(words)


def cut_words(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A run of at least half of the words, and of 4."""
    least = min(len(words), max(4, math.ceil(0.5 * len(words))))
    length = int(rng.integers(least, len(words) + 1))
    start = int(rng.integers(0, len(words) - length + 1))
    return list(words[start : start + length])


def sentences_digest(*splits: Mapping[str, Sequence[CorpusItem]]) -> str:
    """SHA-256 of the texts and labels of splits."""
    whole = hashlib.sha256()
    for split in splits:
        for name, items in split.items():
            told = [[item.text, item.sentiment, item.coarse, item.emotion, item.emotion_target] for item in items]
            whole.update(msgspec.json.encode([name, told]))
    return whole.hexdigest()


def sentences(corpora: Sequence[Corpus], split: str) -> dict[str, list[CorpusItem]]:
    """Items with text of one split, by corpus.

    Raises:
        DataError: there are none.
    """
    parts: dict[str, list[CorpusItem]] = {}
    for corpus in corpora:
        items = [item for item in corpus.split(split) if item.text]
        if items:
            parts.setdefault(corpus.name, []).extend(items)
    if not parts:
        raise DataError(f"none of the corpora has text in a split `{split}`")
    return parts


def epoch_items(
    corpora: dict[str, list[CorpusItem]], sampling: SamplingConfig, seed: int, epoch: int
) -> Iterator[CorpusItem]:
    """The items of an epoch: whole copies of a corpus, and a random part where the repeats have a fraction."""
    for name, items in sorted(corpora.items()):
        rng = np.random.default_rng([seed, epoch, len(items)])
        whole, part = divmod(sampling.repeats_of(name), 1.0)
        for _ in range(int(whole)):
            yield from items
        for n in rng.permutation(len(items))[: round(part * len(items))]:
            yield items[n]


def batches(
    corpora: dict[str, list[CorpusItem]],
    tokenizer: WordTokenizer,
    sampling: SamplingConfig,
    seed: int,
    epoch: int,
    targets: TeacherTargets | None = None,
) -> Iterator[Batch]:
    """An epoch's shuffled batches, with sentences of similar length together to save padding."""
    rng = np.random.default_rng([seed, epoch])
    mishear = Mishearing(item.text or "" for _, items in sorted(corpora.items()) for item in items)
    drawn: list[tuple[CorpusItem, Pieces]] = []
    certain: list[float] = []
    for item in epoch_items(corpora, sampling, seed, epoch):
        words = (item.text or "").split()
        if rng.random() < sampling.bare:
            words = bare_words(words, rng)
        if rng.random() < sampling.cut:
            words = cut_words(words, rng)
        errors = rng.uniform(*sampling.word_errors) if rng.random() < sampling.misheard else 0.0
        if errors:
            words = mishear(words, errors, rng)
        drawn.append((item, tokenizer.tokenize_words(words)))
        certain.append(certainty(errors))
    order = rng.permutation(len(drawn))
    pool = sampling.batch * 64
    groups: list[list[int]] = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda n: len(drawn[n][1].input_ids))
        groups += [near[n : n + sampling.batch] for n in range(0, len(near), sampling.batch)]
    for number in rng.permutation(len(groups)):
        yield collate([drawn[n] for n in groups[number]], targets, [certain[n] for n in groups[number]])


def collate(
    chosen: Sequence[tuple[CorpusItem, Pieces]], targets: TeacherTargets | None = None, certain: Sequence[float] = ()
) -> Batch:
    """Pad sentences to the longest of them.

    `certain`: the confidence in each one's labels, 1 if not given; the rest is neutral sentiment and a uniform
    distribution of emotions.
    """
    size, length = len(chosen), max(len(pieces.input_ids) for _, pieces in chosen)
    ids, mask = np.zeros((size, length), np.int64), np.zeros((size, length), np.int64)
    words = np.full((size, length), -1, np.int64)
    sentiment, emotions = np.full(size, np.nan, np.float32), np.zeros((size, len(EMOTIONS)), np.float32)
    taught_sentiment, taught_emotions = np.full_like(sentiment, np.nan), np.zeros_like(emotions)
    for row, (item, pieces) in enumerate(chosen):
        own = len(pieces.input_ids)
        ids[row, :own], mask[row, :own] = pieces.input_ids, 1
        # The newest words, as in a window of the model; words without remaining pieces are not counted.
        inside = pieces.word_index >= 0
        _, number = np.unique(pieces.word_index[inside], return_inverse=True)
        words[row, :own][inside] = np.maximum(number - max(0, int(number.max(initial=-1)) + 1 - TEXT_STEPS), -1)
        if item.sentiment is not None:
            sentiment[row] = item.sentiment
        if item.emotion_target is not None:
            emotions[row] = item.emotion_target
        if targets is not None:
            known = targets.rows[item.text or ""]
            taught_sentiment[row], taught_emotions[row] = targets.sentiment[known], targets.emotions[known]
    if certain:
        holds = np.array(certain, np.float32)
        sentiment, taught_sentiment = sentiment * holds, taught_sentiment * holds
        for shares in (emotions, taught_emotions):
            given = shares.sum(1) > 0
            shares[given] = shares[given] * holds[given, None] + (1 - holds[given, None]) / len(EMOTIONS)
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        words=torch.from_numpy(words),
        sentiment=torch.from_numpy(sentiment),
        coarse=torch.tensor([item.coarse for item, _ in chosen]),
        emotions=torch.from_numpy(emotions),
        taught_sentiment=torch.from_numpy(taught_sentiment),
        taught_emotions=torch.from_numpy(taught_emotions),
    )


# Approximate shares of the errors of small recognisers on noisy speech.
SUBSTITUTED, DELETED = 0.6, 0.25  # the rest is inserted
_SOUNDS = {c: code for code, letters in enumerate(("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1) for c in letters}
_RARE = 2  # words that are rarer in the corpora are not inserted


class Mishearing:
    """Simulates recognition errors with the vocabulary of some texts.

    Args:
        texts: source of the vocabulary, with word frequencies.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        counted = Counter(word for text in texts for word in plain_words(text.split()))
        words = sorted(word for word, count in counted.items() if count >= _RARE) or sorted(counted) or ["the"]
        # A recogniser's language model prefers common words, though less than proportionally.
        weights = np.array([counted[word] or 1 for word in words], np.float64) ** 0.5
        self._words, self._share = words, np.cumsum(weights) / weights.sum()
        self._common = [word for word, _ in sorted(counted.most_common(60))] or words
        alike: dict[str, list[int]] = {}
        for number, word in enumerate(words):
            alike.setdefault(_sound(word), []).append(number)
        self._alike = {
            sound: ([words[n] for n in numbers], np.cumsum(weights[numbers]) / weights[numbers].sum())
            for sound, numbers in alike.items()
        }

    def __call__(self, words: Sequence[str], rate: float, rng: np.random.Generator) -> list[str]:
        """The words with errors in a fraction `rate` of them, on average; at least one word is left."""
        misheard: list[str] = []
        kinds = rng.random(len(words)) / max(rate, 1e-9)  # below 1: an error, whose kind depends on the sub-interval
        for word, kind in zip(words, kinds, strict=True):
            if kind < SUBSTITUTED:
                misheard.append(self._taken_for(word, rng))
            elif kind >= SUBSTITUTED + DELETED:
                misheard.append(word)
            if SUBSTITUTED + DELETED <= kind < 1:
                misheard.append(self._common[int(rng.integers(len(self._common)))])
        return misheard or [self._taken_for(words[0], rng)] if words else []

    def _taken_for(self, word: str, rng: np.random.Generator) -> str:
        plain = "".join(plain_words([word]))
        near, share = self._alike.get(_sound(plain), ([], np.ones(0)))
        # Half of the time a similar-sounding word, else any that the language model expects.
        if len(near) > 1 and rng.random() < 0.5:
            return near[_drawn(share, rng)]
        return self._words[_drawn(self._share, rng)]


def plain_words(words: Sequence[str]) -> list[str]:
    """Lower case, no punctuation but apostrophes. Words of nothing else are dropped."""
    plain = ["".join(c for c in word.replace("’", "'") if c.isalnum() or c == "'").lower() for word in words]
    return [word for word in plain if word]


def certainty(rate: float) -> float:
    """Confidence in a sentence's label if a fraction `rate` of its words is wrong: 1 without errors, 0.5 at 60 %."""
    return 1.0 - 0.5 * min(1.0, rate / 0.6) ** 2


def _drawn(share: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
    """An index, drawn from cumulative shares."""
    return min(int(np.searchsorted(share, rng.random())), len(share) - 1)


def _sound(word: str) -> str:
    """The first letter and the next two consonants by their place of articulation, as Soundex codes them."""
    codes: list[int] = []
    for letter in word[1:]:
        code = _SOUNDS.get(letter, 0)
        if code and (not codes or codes[-1] != code):
            codes.append(code)
    return word[:1] + "".join(map(str, codes[:2]))
