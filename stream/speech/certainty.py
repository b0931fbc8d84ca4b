"""Whether the recogniser is confident, or guessing.

An English recogniser hears English in everything, even in another language or in speech played backwards, but then
gives its words low probabilities. Measured with tiny.en: the mean over an utterance is 0.8 to 0.95 for clear English,
below 0.6 for one in a hundred; 0.3 to 0.4 for German, Italian, Polish, Korean and for English backwards, above 0.6
for one in fifty. The mean log probability of a hypothesis is below -1.2 for one in three hundred of clear English, and
for three in four of the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import msgspec

from mien.clock import NS_PER_S
from mien.messages import Word
from mien.stream.speech.agreement import plain
from mien.stream.speech.whisper import DecodedWord

SURE = 0.6  # mean probability of the words below which an utterance is a guess
BELIEF, BELIEF_WORDS = 0.8, 3  # prior of an utterance: this many words of this probability
LEAST_BELIEF = 0.5  # weaker prior after an utterance that was a guess
DOUBTFUL = -1.2  # mean log probability of a hypothesis that is a guess
DOUBTFUL_S = 1.5  # of sound: with less, every hypothesis is a guess
DOUBT, DOUBT_WORDS = 0.2, 3  # a doubtful hypothesis counts as this many words of this probability
FORGET_NS = 10 * NS_PER_S  # after this long without a word the prior is restored
FEW = 3  # different words: more of them are speech, perhaps in another language
_LEAST = 1e-3


def is_noise(words: Sequence[DecodedWord], limit: float) -> bool:
    """Whether the beginning of an utterance is only what a decoder makes of a cough or laughter.

    A decoder gets more confident in a word by repeating it, so each counts once, at its first occurrence.

    Args:
        limit: mean log probability below which it is noise.
    """
    first: dict[str, float] = {}
    for word in words:
        first.setdefault(plain(word.text), max(word.probability, _LEAST))
    return 0 < len(first) <= FEW and sum(map(math.log, first.values())) / len(first) < limit


class Certainty:
    """Confidence over all words of an utterance: a single word says little."""

    def __init__(self) -> None:
        self._belief = BELIEF
        self._settled_ns = -1  # start of the last word of the utterance before
        self._doubts = 0  # doubtful hypotheses of this utterance

    def weigh(self, log_probability: float, seconds: float) -> None:
        """Account for a hypothesis over `seconds` of sound, by its mean log probability."""
        self._doubts += seconds >= DOUBTFUL_S and log_probability < DOUBTFUL

    def judged(self, committed: Collection[Word], tentative: Sequence[Word], t_ns: int) -> list[Word]:
        """Committed and tentative words with `uncertain` set as of `t_ns`.

        Args:
            committed: those of earlier utterances stay unchanged.
        """
        if t_ns < self._settled_ns:
            self._settled_ns = -1  # the clock was set back
        if t_ns > self._settled_ns + FORGET_NS:
            self._belief = BELIEF
        before = [word for word in committed if word.t_start_ns <= self._settled_ns]
        words = [*list(committed)[len(before) :], *tentative]
        uncertain = bool(words) and self._mean(words) < SURE
        return before + [msgspec.structs.replace(word, uncertain=uncertain) for word in words]

    def settle(self, committed: Collection[Word], t_ns: int) -> list[Word]:
        """End of utterance: its committed words with their final `uncertain`, after those of earlier utterances."""
        judged = self.judged(committed, (), t_ns)
        words = [word for word in judged if word.t_start_ns > self._settled_ns]
        if words:
            self._belief = min(max(self._mean(words), LEAST_BELIEF), BELIEF)
            self._settled_ns = words[-1].t_start_ns
        self._doubts = 0
        return judged

    def _mean(self, words: Sequence[Word]) -> float:
        total = self._belief * BELIEF_WORDS + DOUBT * DOUBT_WORDS * self._doubts
        total += sum(word.probability for word in words)
        return total / (BELIEF_WORDS + DOUBT_WORDS * self._doubts + len(words))
