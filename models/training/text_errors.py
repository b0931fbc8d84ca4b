"""Simulated errors of a speech recogniser: words deleted, inserted, and replaced by others that sound alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

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
