"""The dashboard's history: bounded, ordered, and explicit about missing values."""

from __future__ import annotations

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import EMOTIONS, Phrase, Prediction, Word
from mien.stream.bus.preview import Preview
from mien.stream.dashboard.history import History, row_of_word

FRAME_NS = 40 * NS_PER_MS
HAPPY = {name: 0.4 if name == "happy" else 0.1 for name in EMOTIONS}


def prediction(
    t_ns: int, sentiment: float | None = 1.0, words: tuple[Word, ...] = (), phrases: tuple[Phrase, ...] = ()
) -> Prediction:
    return Prediction(
        session="default",
        run=1,
        seq=0,
        t_end_ns=t_ns,
        sentiment=sentiment,
        sentiment_smooth=sentiment,
        emotions=HAPPY if sentiment is not None else None,
        confidence=0.5 if sentiment is not None else None,
        gates={"text": 0.0, "audio": 0.4, "vision": 0.6},
        age_ms={"text": 300.0, "audio": 20.0, "vision": 0.0},
        absent={"text": "nothing was said"},
        abstains=None if sentiment is not None else "nothing is observed",
        words=words,
        phrases=phrases,
    )


def preview(t_ns: int) -> Preview:
    nothing = np.zeros((0, 2), np.float32)
    return Preview(
        session="default", run=1, seq=0, t_ns=t_ns, features_seq=0, width=4, height=4, landmarks=nothing, jpeg=b"x"
    )


def words_of(history: History) -> list[list[str | float | int | bool | None]]:
    return [row_of_word(each.word, each.sentiment) for each in history.words]


def test_history_holds_ten_rows_per_second_of_recent_minutes() -> None:
    history = History(minutes=1.0)
    for frame in range(25 * 90):
        t_ns = frame * FRAME_NS
        history.add(prediction(t_ns))
        history.add_sound(t_ns, -30.0, 0.9, True)
        history.add_picture(preview(t_ns))
    times_ms = [row[0] for row in history.rows if row[0] is not None]
    assert len(times_ms) == len(history.rows)
    assert 59_000 <= times_ms[-1] - times_ms[0] <= 60_000
    assert 480 <= len(history.rows) <= 610
    assert history.first_row + len(history.rows) == history.first_sound + len(history.sound)
    kept = history.picture_at(60 * NS_PER_S)
    assert kept is not None
    assert abs(kept.t_ns - 60 * NS_PER_S) <= 200 * NS_PER_MS
    assert history.picture_at(10 * NS_PER_S) is None


def test_missing_values_are_null() -> None:
    history = History(minutes=1.0)
    history.add(prediction(NS_PER_S, None))
    (row,) = history.rows
    assert row[1:14] == [None] * 13
    assert row[14:] == [0.0, 20.0, None]  # face, voice; words are absent, however old the last is


def test_words_have_the_sentiment_of_their_phrase() -> None:
    """Independent of face, voice and the previous sentence, even if the phrase continues later."""
    history = History(minutes=1.0)
    ms = NS_PER_MS

    def word(text: str, at_ms: int) -> Word:
        return Word(text, at_ms * ms, (at_ms + 100) * ms)

    words: tuple[Word, ...] = word("No!", 500), word("It", 800), word("is", 1000)
    angry = Phrase(500 * ms, 600 * ms, -2.5, "angry")
    history.add(prediction(1200 * ms, -2.0, words, (angry, Phrase(800 * ms, 1100 * ms, 0.25, "neutral"))))
    assert [word[4] for word in words_of(history)] == [-2.5, 0.25, 0.25]
    version = history.words_version
    words = (*words, word("late.", 1300))
    history.add(prediction(1700 * ms, -2.0, words, (angry, Phrase(800 * ms, 1400 * ms, -0.5, "sad"))))
    assert [word[4] for word in words_of(history)] == [-2.5, -0.5, -0.5, -0.5]
    assert history.words_version > version
    # What was uncertain may be read anew without any new word.
    history.add(prediction(1800 * ms, -2.0, words, (angry, Phrase(800 * ms, 1400 * ms, -0.25, "sad"))))
    assert words_of(history)[-1][4] == -0.25
    assert history.words_version > version + 1


def test_without_phrases_the_first_prediction_gives_the_sentiment() -> None:
    history = History(minutes=1.0)
    ms = NS_PER_MS

    def word(text: str, at_ms: int, committed: bool = True) -> Word:
        return Word(text, at_ms * ms, (at_ms + 100) * ms, committed=committed)

    history.add(prediction(1000 * ms, 2.0, (word("This", 800, False),)))
    history.add(prediction(1500 * ms, -2.0, (word("This", 800, False), word("hurts.", 1000, False))))
    history.add(prediction(2500 * ms, 0.5, (word("This", 800), word("hurts.", 1000), word("I", 2300, False))))
    history.add(
        prediction(3500 * ms, 1.5, (word("This", 800), word("hurts.", 1000), word("I", 2300), word("see", 2500)))
    )
    history.add(
        prediction(3600 * ms, 1.6, (word("This", 800), word("hurts.", 1000), word("I", 2300), word("see", 2500)))
    )
    assert words_of(history) == [
        ["This", 800, 900, True, -2.0, False],
        ["hurts.", 1000, 1100, True, -2.0, False],
        ["I", 2300, 2400, True, 1.5, False],
        ["see", 2500, 2600, True, 1.5, False],
    ]


def test_uncertain_words_have_no_sentiment() -> None:
    history = History(minutes=1.0)
    history.add(prediction(NS_PER_S, 2.0, (Word("sure", 900 * NS_PER_MS, 1000 * NS_PER_MS),)))
    version = history.words_version
    doubted = Word("sure", 900 * NS_PER_MS, 1000 * NS_PER_MS, uncertain=True)
    history.add(prediction(1100 * NS_PER_MS, 2.0, (doubted,)))
    assert words_of(history) == [["sure", 900, 1000, True, None, True]]
    assert history.words_version > version


def test_earlier_words_are_not_coloured_by_guesses() -> None:
    history = History(minutes=1.0)
    history.add(prediction(10 * NS_PER_S, 2.0, (Word("early", NS_PER_S, 2 * NS_PER_S),)))
    assert words_of(history)[0][4] is None


def test_history_restarts_with_the_time_line() -> None:
    history = History(minutes=1.0)
    history.add(prediction(100 * NS_PER_S))
    history.add_picture(preview(100 * NS_PER_S))
    history.add(prediction(NS_PER_S))
    assert history.era == 1
    assert [row[0] for row in history.rows] == [1000]
    assert history.picture_at(100 * NS_PER_S) is None
