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
class SaidWord:
    """A committed word; `sentiment` and `emotion` are of its phrase so far, None if it has none."""

    word: Word
    sentiment: float | None = None
    emotion: str | None = None


class SaidWords:
    """Follows one session's predictions in order."""

    def __init__(self) -> None:
        # Words as first recognised, with that prediction's sentiment.
        self._seen: deque[SaidWord] = deque(maxlen=_KEPT)
        self._said: deque[SaidWord] = deque(maxlen=_KEPT)
        self._phrase: list[SaidWord] = []

    def hear(self, prediction: Prediction) -> tuple[list[SaidWord], bool]:
        """The words committed by this prediction, and whether words returned earlier have changed.

        Words change in place: in their sentiment when their phrase continues, and in whether they are uncertain, which
        newer predictions know better.
        """
        newly: list[SaidWord] = []
        before = [(said, said.sentiment, said.word) for said in self._said]
        judged = {word.t_start_ns: word for word in prediction.words if word.committed}
        for said in self._said:
            now = judged.get(said.word.t_start_ns, said.word)
            said.word = now if now.uncertain != said.word.uncertain else said.word
        for word in prediction.words:
            known = self._first(word)
            if known is None:
                # Words from before the window are not rated any more.
                read = prediction if prediction.t_end_ns - word.t_end_ns <= WINDOW_NS else None
                known = SaidWord(word, read.sentiment, read.top_emotion) if read else SaidWord(word)
                self._seen.append(known)
            last = self._said[-1].word if self._said else None
            if not word.committed or (last is not None and word.t_start_ns <= last.t_start_ns):
                continue
            self._phrase = [] if begins_phrase(word, last) else self._phrase
            self._phrase.append(SaidWord(word))
            self._said.append(self._phrase[-1])
            newly.append(self._phrase[-1])
            for said in self._phrase:
                said.sentiment, said.emotion = known.sentiment, known.emotion
        for phrase in prediction.phrases:
            for said in self._said:
                if phrase.t_start_ns <= said.word.t_start_ns <= phrase.t_end_ns:
                    said.sentiment, said.emotion = phrase.sentiment, phrase.emotion
        return newly, any((said.sentiment, said.word) != (sentiment, word) for said, sentiment, word in before)

    def _first(self, word: Word) -> SaidWord | None:
        text = _plain(word.text)
        for known in self._seen:
            if _plain(known.word.text) == text and abs(known.word.t_start_ns - word.t_start_ns) <= _SAME_NS:
                return known
        return None


def _plain(text: str) -> str:
    return text.strip().strip(".,!?…").lower()
