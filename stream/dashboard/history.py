"""The dashboard's history: the last minutes of predictions, audio, words and pictures, in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import EMOTIONS, Prediction, Word
from mien.stream.bus.preview import Preview
from mien.stream.recording.phrases import PhraseWord, PhraseWords

MODALITIES = ("vision", "audio", "text")
ROW_NS = 95 * NS_PER_MS  # one row per tenth of a second, at any rate of predictions
PICTURE_NS = 330 * NS_PER_MS  # three pictures a second are kept for looking back
_WORDS = 600

# A row: capture time in ms, sentiment, smoothed, confidence, seven emotions, three gates, age of each modality in ms.
Row = list[float | int | None]
SoundRow = list[float | int | bool]  # capture time in ms, level in dB, probability of speech, voice activity


class History:
    """A rolling history.

    Attributes:
        rows, sound: oldest first; `first_row` and `first_sound` count evicted ones, so that a row's position among all
            that ever were is a stable cursor.
        words: committed ones, oldest first; `tentative`: those that may still change.
        era: changes when time went backwards and everything before was dropped.
    """

    def __init__(self, minutes: float) -> None:
        self._span_ns = int(minutes * 60 * NS_PER_S)
        self.era = 0
        self.rows: deque[Row] = deque()
        self.sound: deque[SoundRow] = deque()
        self.first_row = self.first_sound = 0
        self.words: deque[PhraseWord] = deque(maxlen=_WORDS)
        self.tentative: list[Word] = []
        self.words_version = 0
        self._phrases = PhraseWords()
        self._pictures: deque[Preview] = deque()
        self._newest_ns = 0
        self._newest_sound_ns = 0

    def add(self, prediction: Prediction) -> None:
        """Add a prediction; at most ten a second become rows."""
        t_ns = prediction.t_end_ns
        if self.rows and t_ns < self._newest_ns - 2 * NS_PER_S:
            self.clear()
        self._add_words(prediction)
        if self.rows and t_ns - self._newest_ns < ROW_NS:
            return
        self._newest_ns = t_ns
        self.rows.append(row_of(prediction))
        oldest_ms = (t_ns - self._span_ns) // NS_PER_MS
        while self.rows and int(self.rows[0][0] or 0) < oldest_ms:
            self.rows.popleft()
            self.first_row += 1
        while self._pictures and self._pictures[0].t_ns < t_ns - self._span_ns:
            self._pictures.popleft()

    def add_sound(self, t_ns: int, level_db: float, speech: float, voice: bool) -> None:
        """Add an audio level (dB of full scale), speech probability 0 ... 1 and voice activity."""
        if self.sound and 0 <= t_ns - self._newest_sound_ns < ROW_NS:
            return
        self._newest_sound_ns = t_ns
        self.sound.append([t_ns // NS_PER_MS, round(level_db, 1), round(speech, 2), voice])
        while self.sound and self.sound[0][0] < (t_ns - self._span_ns) // NS_PER_MS:
            self.sound.popleft()
            self.first_sound += 1

    def add_picture(self, preview: Preview) -> None:
        """Keep a picture for looking back, if the last one is at least a third of a second old."""
        if self._pictures and preview.t_ns < self._pictures[-1].t_ns:
            self._pictures.clear()
        if not self._pictures or preview.t_ns - self._pictures[-1].t_ns >= PICTURE_NS:
            self._pictures.append(preview)

    def picture_at(self, t_ns: int) -> Preview | None:
        """The picture nearest to a capture time; None if there is none within a second."""
        index = bisect_left(self._pictures, t_ns, key=lambda preview: preview.t_ns)
        near = [self._pictures[i] for i in (index - 1, index) if 0 <= i < len(self._pictures)]
        best = min(near, key=lambda preview: abs(preview.t_ns - t_ns), default=None)
        return best if best is not None and abs(best.t_ns - t_ns) <= NS_PER_S else None

    def clear(self) -> None:
        """Start over: another session, or a timeline that restarted."""
        self.era += 1
        self.first_row = self.first_sound = 0
        self.rows.clear()
        self.sound.clear()
        self.words.clear()
        self._phrases = PhraseWords()
        self.tentative = []
        self.words_version += 1
        self._pictures.clear()
        self._newest_ns = self._newest_sound_ns = 0

    def _add_words(self, prediction: Prediction) -> None:
        new, changed = self._phrases.add(prediction)
        self.words.extend(new)
        tentative = [word for word in prediction.words if not word.committed]
        shown = [(word.text, word.uncertain) for word in self.tentative]
        if new or changed or [(word.text, word.uncertain) for word in tentative] != shown:
            self.tentative = tentative
            self.words_version += 1


def row_of(prediction: Prediction) -> Row:
    """A prediction as a row; None for missing numbers."""
    row: Row = [prediction.t_end_ns // NS_PER_MS]
    row += [_rounded(prediction.sentiment, 3), _rounded(prediction.sentiment_smooth, 3)]
    row.append(_rounded(prediction.confidence, 3))
    row += [_rounded(prediction.emotions[name], 3) if prediction.emotions else None for name in EMOTIONS]
    row += [_rounded(prediction.gates.get(name, 0.0), 3) if prediction.emotions else None for name in MODALITIES]
    row += [None if name in prediction.absent else _rounded(prediction.age_ms.get(name), 0) for name in MODALITIES]
    return row


def row_of_word(word: Word, sentiment: float | None = None) -> list[str | float | int | bool | None]:
    """A word for the page: text, begin, end, committed, the sentiment of its phrase, uncertain."""
    shown = None if word.uncertain else _rounded(sentiment, 2)
    begin_ms, end_ms = word.t_start_ns // NS_PER_MS, word.t_end_ns // NS_PER_MS
    return [word.text.strip(), begin_ms, end_ms, word.committed, shown, word.uncertain]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
