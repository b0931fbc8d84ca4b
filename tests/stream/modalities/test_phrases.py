"""Phrases predicted from their words alone, with the real text encoder and the shipped weights."""

from __future__ import annotations

import pytest

from mien.assets import asset_path
from mien.clock import NS_PER_S
from mien.engines.predictor import SnapshotReader, snapshot_reader
from mien.errors import CheckpointError
from mien.messages import EMOTIONS, Float32, Word
from mien.models.checkpoint import load_checkpoint
from mien.stream.modalities.phrases import PhraseReader
from mien.stream.modalities.text import TextEncoder
from mien.stream.speech.asr import Recognised
from mien.stream.speech.phrases import phrases_of

ANGRY, REPORT, TERRIBLE = "I hate this, it is not fair!", "The report has four parts.", "This is terrible."
STEP_NS = NS_PER_S // 5


class Counting:
    """An encoder that keeps what it was asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._encoder = TextEncoder(asset_path("minilm-l6-v2"), "onnx")

    def __call__(self, words: tuple[str, ...]) -> Float32:
        self.requests.append(" ".join(words))
        return self._encoder.encode(words)


@pytest.fixture
def encode() -> Counting:
    return Counting()


@pytest.fixture
def reader(encode: Counting) -> PhraseReader:
    return PhraseReader(encode, lambda: snapshot_reader(load_checkpoint(), "text"))


def words_of(*sentences: str, first_ns: int = 0, **changes: bool) -> tuple[Word, ...]:
    """Five words a second, one sentence after the other."""
    words = " ".join(sentences).split()
    return tuple(
        Word(text, first_ns + k * STEP_NS, first_ns + (k + 1) * STEP_NS - 1, **changes) for k, text in enumerate(words)
    )


def recognised(words: tuple[Word, ...], t_end_ns: int | None = None) -> Recognised:
    return Recognised(words[-1].t_end_ns if t_end_ns is None else t_end_ns, words, ())


def test_phrases_end_at_punctuation_and_at_pauses() -> None:
    words = words_of("So it is. And then") + words_of("later", first_ns=3 * NS_PER_S)
    assert [[word.text for word in phrase] for phrase in phrases_of(words)] == [
        ["So", "it", "is."],
        ["And", "then"],
        ["later"],
    ]
    assert phrases_of(()) == []


@pytest.mark.assets
def test_a_phrase_is_read_by_its_own_words_alone(reader: PhraseReader) -> None:
    (alone,) = reader.phrases(recognised(words_of(REPORT)))
    assert abs(alone.sentiment) < 0.5
    assert alone.emotion in EMOTIONS
    words = words_of(ANGRY, REPORT)
    angry, after = reader.phrases(recognised(words))
    assert angry.sentiment < -0.25
    assert after.sentiment == pytest.approx(alone.sentiment, abs=1e-5)
    assert (after.t_start_ns, after.t_end_ns) == (words[7].t_start_ns, words[-1].t_end_ns)
    _, terrible = reader.phrases(recognised(words_of("I love it!", TERRIBLE)))
    assert terrible.sentiment < -0.25


@pytest.mark.assets
def test_a_phrase_is_read_again_only_when_it_changes(reader: PhraseReader, encode: Counting) -> None:
    words = words_of(ANGRY, REPORT)
    reader.phrases(recognised(words[:9]))
    reader.phrases(recognised(words[:9], words[-1].t_end_ns))
    assert encode.requests == [ANGRY, "The report"]
    first, second = reader.phrases(recognised(words))
    assert encode.requests == [ANGRY, "The report", REPORT]
    # The recogniser has forgotten how the first one began.
    assert reader.phrases(recognised(words[3:])) == (first, second)
    assert len(encode.requests) == 3
    # What has left the window is not read any more.
    assert reader.phrases(recognised(words, first.t_end_ns + 5 * NS_PER_S)) == (second,)


@pytest.mark.assets
def test_tentative_and_uncertain_words_do_not_count(reader: PhraseReader, encode: Counting) -> None:
    assert reader.phrases(recognised(words_of(ANGRY, committed=False))) == ()
    assert reader.phrases(recognised(words_of(ANGRY, uncertain=True))) == ()
    assert encode.requests == []


@pytest.mark.assets
def test_unreadable_phrase_is_skipped_once(encode: Counting, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> SnapshotReader:
        raise CheckpointError("it reads no text")

    reader = PhraseReader(encode, refuse)
    assert reader.phrases(recognised(words_of(ANGRY))) == reader.phrases(recognised(words_of(REPORT))) == ()
    assert [record.message for record in caplog.records] == ["cannot rate single phrases: it reads no text"]


def test_only_rows_without_instants_are_read_singly() -> None:
    with pytest.raises(CheckpointError, match="reads no vision"):
        snapshot_reader(load_checkpoint(), "vision")
