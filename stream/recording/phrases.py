"""The sentiment of what was said, phrase by phrase.

A prediction at the moment a word is spoken cannot know the word: it is recognised up to some seconds later, and until
then the sentiment is that of what was said before. So each phrase has the sentiment of the first prediction that knows
its last word.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from mien.clock import NS_PER_S
from mien.messages import Prediction, Word
from mien.windowing import WINDOW_NS

_PAUSE_NS = 7 * NS_PER_S // 10  # from one word to the next; a longer one ends a phrase
_SAME_NS = NS_PER_S // 2  # a word that is recognised again moves by no more
_KEPT = 256
_ENDINGS = (".", "!", "?", "…")


@dataclass(frozen=True)
class PhraseWord:
    """A newly committed word.

    Attributes:
        begins: it begins a phrase; otherwise it goes on with that of the word before.
        sentiment, emotion: of its phrase as far as it goes; the words before it in the phrase now have them too.
    """

    word: Word
    begins: bool
    sentiment: float | None
    emotion: str | None


class _Known(NamedTuple):
    """A word as it was first recognised, and what the prediction that had it said."""

    word: Word
    sentiment: float | None
    emotion: str | None


class PhraseReader:
    """Follows the predictions of one session in order."""

    def __init__(self) -> None:
        self._seen: deque[_Known] = deque(maxlen=_KEPT)
        self._last: Word | None = None

    def hear(self, prediction: Prediction) -> list[PhraseWord]:
        """The words that this prediction has committed."""
        newly = []
        for word in prediction.words:
            known = self._first(word)
            if known is None:
                # What was said before the window has no reading of its own.
                read = prediction if prediction.t_end_ns - word.t_end_ns <= WINDOW_NS else None
                known = _Known(word, read.sentiment, read.top_emotion) if read else _Known(word, None, None)
                self._seen.append(known)
            if not word.committed or (self._last is not None and word.t_start_ns <= self._last.t_start_ns):
                continue
            last, self._last = self._last, word
            begins = (
                last is None or last.text.rstrip().endswith(_ENDINGS) or word.t_start_ns - last.t_end_ns >= _PAUSE_NS
            )
            newly.append(PhraseWord(word, begins, known.sentiment, known.emotion))
        return newly

    def _first(self, word: Word) -> _Known | None:
        text = _plain(word.text)
        for known in self._seen:
            if _plain(known.word.text) == text and abs(known.word.t_start_ns - word.t_start_ns) <= _SAME_NS:
                return known
        return None


def _plain(text: str) -> str:
    return text.strip().strip(".,!?…").lower()
