"""A recording as a table: a row per prediction, its words, and summary figures, for exports and reports."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from mien.clock import NS_PER_S
from mien.errors import RecordingError
from mien.messages import EMOTIONS, WORKERS, About, Prediction
from mien.stream.recording import channels
from mien.stream.recording.phrases import PhraseWord, PhraseWords
from mien.stream.recording.reader import Recording, open_recording

UNIX_NS = 10**17  # times before 1973 belong to a clip that was played in full


class SpokenWord(msgspec.Struct, frozen=True):
    """A committed, certain word.

    Times in seconds from the recording's zero; `sentiment` of its phrase, None if it had none.
    """

    text: str
    t_start_s: float
    t_end_s: float
    sentiment: float | None
    emotion: str | None


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prediction. `t_s` is in seconds from the recording's zero; the rest is as in `mien.Prediction`.

    `clip` is the file of an offline prediction; empty in a recording.
    """

    t_s: float
    t_end_ns: int
    sentiment: float | None
    sentiment_smooth: float | None
    emotion: str | None
    emotions: dict[str, float] | None
    confidence: float | None
    gates: dict[str, float]
    age_ms: dict[str, float | None]
    absent: dict[str, str]
    abstains: str | None
    latency_ms: float | None
    transcript: str
    model: str
    clip: str = ""


_SAME = set(Row.__struct_fields__) & set(Prediction.__struct_fields__) - {"transcript"}  # as in a prediction


class Table(msgspec.Struct, frozen=True):
    """A whole recording.

    Attributes:
        path: of the recording. cut_off: it was not closed properly.
        zero_ns: session time of t_s = 0: when capture began, or the first prediction if the recording began later.
        words: those that ended after the recording began.
        lost: predictions known to be missing.
    """

    path: Path
    about: About | None
    cut_off: bool
    zero_ns: int
    rows: tuple[Row, ...]
    words: tuple[SpokenWord, ...]
    lost: int

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, face first."""
        named = {name for row in self.rows for name in row.gates}
        return tuple(sorted(named, key=lambda name: (*WORKERS.values(), name).index(name)))


def read_table(path: Path) -> Table:
    """Read a recording's predictions and words.

    Raises:
        RecordingError: it cannot be read, or holds no predictions.
    """
    recording = open_recording(path)
    zero_ns = zero_ns_of(recording)
    rows: list[Row] = []
    phrase_words: list[PhraseWord] = []
    phrases = PhraseWords()
    run, next_seq, lost = -1, 0, 0
    for prediction in recording.predictions():
        lost += prediction.seq - next_seq if prediction.run == run else 0
        run, next_seq = prediction.run, prediction.seq + 1
        phrase_words += phrases.add(prediction)[0]
        rows.append(_row(prediction, zero_ns))
    certain = [_word(each, zero_ns) for each in phrase_words if not each.word.uncertain]
    spoken = tuple(word for word in certain if word.t_end_s > 0)
    return Table(path, recording.about, recording.cut_off, zero_ns, tuple(rows), spoken, lost)


def summarise(table: Table) -> dict[str, Any]:
    """Summary figures of the rows.

    `emotions` is the mean probability of each emotion and `top_emotion` the fraction of predictions in which it is on
    top, over predictions that did not abstain; `coverage` is the fraction of all in which a modality had evidence;
    `gates` is its mean share in the decision, over those that did not abstain.
    """
    rows = table.rows
    made = [row for row in rows if row.emotions is not None]
    smooth = [row.sentiment_smooth for row in rows if row.sentiment_smooth is not None]
    tops = Counter(row.emotion for row in made)
    latencies = sorted(row.latency_ms for row in rows if row.latency_ms is not None)
    return {
        "seconds": (rows[-1].t_end_ns - rows[0].t_end_ns) / NS_PER_S,
        "predictions": len(rows),
        "abstained": len(rows) - len(made),
        "lost": table.lost,
        "models": sorted({row.model for row in rows}),
        "sentiment": {"mean": fmean(smooth), "min": min(smooth), "max": max(smooth)} if smooth else None,
        "emotions": {e: fmean(row.emotions[e] for row in made if row.emotions) for e in EMOTIONS} if made else None,
        "top_emotion": {e: tops[e] / len(made) for e in EMOTIONS} if made else None,
        "confidence": fmean(row.confidence for row in made if row.confidence is not None) if made else None,
        "gates": {m: fmean(row.gates.get(m, 0.0) for row in made) for m in table.modalities} if made else None,
        "coverage": {m: sum(row.gates.get(m, 0.0) > 0 for row in rows) / len(rows) for m in table.modalities},
        "words": len(table.words),
        "latency_ms": {
            f"p{percent}": latencies[min(len(latencies) - 1, len(latencies) * percent // 100)]
            for percent in (50, 90, 99)
        }
        if latencies
        else None,
    }


def zero_ns_of(recording: Recording) -> int:
    """Session time of t_s = 0, see `Table`.

    Raises:
        RecordingError: it holds no predictions.
    """
    first = next(recording.predictions(), None)
    if first is None:
        raise RecordingError(f"{recording.path} holds no predictions; was mien running when it was recorded?")
    if first.t_end_ns < UNIX_NS:
        return 0
    begun = [first.t_end_ns] if first.seq else []
    for modality in ("vision", "audio"):  # words are sent together with earlier ones
        entry = next(recording.entries({channels.FEATURES + modality}), None)
        record = entry.features()[0] if entry is not None else None
        begun += [record.t_start_ns] if record is not None and record.seq == 0 else []
    return min((t_ns for t_ns in begun if t_ns >= UNIX_NS), default=first.t_end_ns)


def _row(prediction: Prediction, zero_ns: int) -> Row:
    transcript = f"{prediction.transcript.committed} {prediction.transcript.tentative}".strip()
    return Row(
        **{name: getattr(prediction, name) for name in _SAME},
        t_s=(prediction.t_end_ns - zero_ns) / NS_PER_S,
        emotion=prediction.top_emotion,
        latency_ms=prediction.latency.get("total"),
        transcript=transcript,
    )


def _word(shown: PhraseWord, zero_ns: int) -> SpokenWord:
    word = shown.word
    begin_s, end_s = (word.t_start_ns - zero_ns) / NS_PER_S, (word.t_end_ns - zero_ns) / NS_PER_S
    return SpokenWord(word.text.strip(), begin_s, end_s, shown.sentiment, shown.emotion)
