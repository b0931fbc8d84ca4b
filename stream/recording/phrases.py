"""Words with the sentiment of their phrases, from a session's predictions.

Predictions carry the sentiment of each phrase's words alone. Those recorded before mien 0.3 do not: there a phrase
gets the sentiment of the first prediction that includes its last word, since a prediction at the moment a word is
spoken cannot know it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mien.clock import NS_PER_S
from mien.messages import Prediction, Word
from mien.stream.speech.phrases import begins_phrase
from mien.windowing import WINDOW_NS

_SAME_NS = NS_PER_S // 2  # a word that is recognised again moves by at most this much
_KEPT = 256


@dataclass(eq=False)
class PhraseWord:
    """A committed word; `sentiment` and `emotion` are of its phrase so far, None if it has none."""

    word: Word
    sentiment: float | None = None
    emotion: str | None = None


class PhraseWords:
    """Follows one session's predictions in order."""

    def __init__(self) -> None:
        # Words as first recognised, with that prediction's sentiment.
        self._seen: deque[PhraseWord] = deque(maxlen=_KEPT)
        self._words: deque[PhraseWord] = deque(maxlen=_KEPT)
        self._phrase: list[PhraseWord] = []

    def add(self, prediction: Prediction) -> tuple[list[PhraseWord], bool]:
        """The words committed by this prediction, and whether words returned earlier have changed.

        Words change in place: in their sentiment when their phrase continues, and in whether they are uncertain, which
        newer predictions know better.
        """
        newly: list[PhraseWord] = []
        before = [(each, each.sentiment, each.word) for each in self._words]
        judged = {word.t_start_ns: word for word in prediction.words if word.committed}
        for each in self._words:
            now = judged.get(each.word.t_start_ns, each.word)
            each.word = now if now.uncertain != each.word.uncertain else each.word
        for word in prediction.words:
            known = self._first(word)
            if known is None:
                # Words from before the window are not rated any more.
                read = prediction if prediction.t_end_ns - word.t_end_ns <= WINDOW_NS else None
                known = PhraseWord(word, read.sentiment, read.top_emotion) if read else PhraseWord(word)
                self._seen.append(known)
            last = self._words[-1].word if self._words else None
            if not word.committed or (last is not None and word.t_start_ns <= last.t_start_ns):
                continue
            self._phrase = [] if begins_phrase(word, last) else self._phrase
            self._phrase.append(PhraseWord(word))
            self._words.append(self._phrase[-1])
            newly.append(self._phrase[-1])
            for each in self._phrase:
                each.sentiment, each.emotion = known.sentiment, known.emotion
        for phrase in prediction.phrases:
            for each in self._words:
                if phrase.t_start_ns <= each.word.t_start_ns <= phrase.t_end_ns:
                    each.sentiment, each.emotion = phrase.sentiment, phrase.emotion
        return newly, any((each.sentiment, each.word) != (sentiment, word) for each, sentiment, word in before)

    def _first(self, word: Word) -> PhraseWord | None:
        text = _plain(word.text)
        for known in self._seen:
            if _plain(known.word.text) == text and abs(known.word.t_start_ns - word.t_start_ns) <= _SAME_NS:
                return known
        return None


def _plain(text: str) -> str:
    return text.strip().strip(".,!?…").lower()
