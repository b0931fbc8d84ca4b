"""The sentiment of each phrase from its words alone, regardless of face, voice and earlier sentences."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mien.engines.predictor import SnapshotReader
from mien.errors import MienError
from mien.messages import Float32, Phrase, Word
from mien.stream.speech.asr import Recognised
from mien.stream.speech.phrases import phrases_of
from mien.windowing import WINDOW_NS

log = logging.getLogger(__name__)


class PhraseReader:
    """Predicts phrases as they are committed; unchanged ones are not predicted again.

    Args:
        encode: words to rows (n, dim).
        open_reader: opens the predictor at the first phrase: by then inference has compiled it.
    """

    def __init__(self, encode: Callable[[tuple[str, ...]], Float32], open_reader: Callable[[], SnapshotReader]) -> None:
        self._encode, self._open_reader = encode, open_reader
        self._reader: SnapshotReader | None = None
        self._failed = False
        self._read: dict[int, tuple[tuple[str, ...], Phrase]] = {}  # by the end of the last word

    def phrases(self, recognised: Recognised) -> tuple[Phrase, ...]:
        """Phrases of committed, certain words that overlap the window ending at the end of the audio.

        A phrase in progress is predicted again with each committed word.
        """
        since_ns = recognised.t_end_ns - WINDOW_NS
        known_ns = min((word.t_start_ns for word in recognised.words), default=0)
        found: dict[int, tuple[tuple[str, ...], Phrase]] = {}
        for words in phrases_of(word for word in recognised.words if word.committed):
            certain = [word for word in words if not word.uncertain]
            if certain and since_ns < certain[-1].t_end_ns <= recognised.t_end_ns:
                reading = self._of(certain, known_ns)
                if reading is not None:
                    found[certain[-1].t_end_ns] = reading
        self._read = found
        return tuple(phrase for _, phrase in found.values())

    def _of(self, words: list[Word], known_ns: int) -> tuple[tuple[str, ...], Phrase] | None:
        texts = tuple(word.text for word in words)
        before = self._read.get(words[-1].t_end_ns)
        if before is not None:
            # The recogniser drops older words: the rest of a long phrase keeps its prediction.
            forgotten = before[1].t_start_ns < known_ns and before[0][-len(texts) :] == texts
            if forgotten or before[0] == texts:
                return before
        if self._failed:
            return None
        try:
            self._reader = self._reader or self._open_reader()
            rows = self._encode(texts)
            sentiment, emotion = self._reader(rows[(rows != 0).any(1)])
        except MienError as error:
            self._failed = True
            log.warning("cannot rate single phrases: %s", error)
            return None
        return texts, Phrase(words[0].t_start_ns, words[-1].t_end_ns, sentiment, emotion)
