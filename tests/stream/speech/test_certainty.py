"""Words are rated together, by the recogniser's probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mien.assets import asset_path
from mien.clock import NS_PER_S
from mien.messages import Float32, Word
from mien.stream.sources.source import SAMPLE_RATE
from mien.stream.speech.asr import Recognised, Recogniser
from mien.stream.speech.certainty import FORGET_NS, Certainty, is_noise
from mien.stream.speech.voice_activity import VoiceActivity
from mien.stream.speech.whisper import DecodedWord, Whisper
from tests.stream.sounds import spoken, spoken_by_espeak

ENGLISH = "The weather is lovely today, and we are going to the sea with all of our friends."


def words(probabilities: Sequence[float], begin_s: float = 0.0) -> list[Word]:
    starts = [round((begin_s + 0.4 * i) * NS_PER_S) for i in range(len(probabilities))]
    return [Word("word", t, t + NS_PER_S // 4, True, p) for t, p in zip(starts, probabilities, strict=True)]


@pytest.mark.parametrize(
    ("probabilities", "uncertain"),
    [
        ([], False),
        ([0.2], False),  # one word is little evidence
        ([0.9, 0.8, 0.95, 0.7], False),
        ([0.9, 0.1, 0.95, 0.7], False),  # an unusual name
        ([0.3, 0.4, 0.35, 0.3, 0.5], True),
    ],
)
def test_an_utterance_is_judged_by_its_mean(probabilities: list[float], uncertain: bool) -> None:
    judged = Certainty().judged(words(probabilities), (), 10 * NS_PER_S)
    assert [word.uncertain for word in judged] == [uncertain] * len(probabilities)


def test_a_few_words_out_of_many_doubtful_hypotheses_are_uncertain() -> None:
    certainty = Certainty()
    judged = words([0.8, 0.5])
    certainty.weigh(-1.8, seconds=0.8)  # so little sound is always doubtful
    assert not any(word.uncertain for word in certainty.judged(judged, (), NS_PER_S))
    for _ in range(3):
        certainty.weigh(-1.8, seconds=3.0)
    assert all(word.uncertain for word in certainty.judged(judged, (), NS_PER_S))


@pytest.mark.parametrize(
    ("hypothesis", "noise"),
    [
        ("Cut,:0.11 cut,:0.89 cut:0.92", True),  # a cough
        ("F-f-f-f-:0.03", True),  # laughter
        ("At:0.03 all.:0.39", True),
        ("No:0.44 no:0.9 no:0.9", False),
        ("Bimblue:0.2 F2:0.6 now.:0.8", False),
        ("I:0.2 have:0.1 seen:0.1 the:0.2", False),  # another language, rather
        ("", False),
    ],
)
def test_a_few_words_that_are_hardly_probable_are_noise(hypothesis: str, noise: bool) -> None:
    decoded = [
        DecodedWord(text, 0.0, 0.1, float(p)) for text, _, p in (word.partition(":") for word in hypothesis.split())
    ]
    assert is_noise(decoded, -1.6) == noise


def test_certainty_of_earlier_utterances_is_final() -> None:
    certainty = Certainty()
    foreign = certainty.settle(words([0.3] * 6), 3 * NS_PER_S)
    assert all(word.uncertain for word in foreign)
    judged = certainty.judged([*foreign, *words([0.9, 0.9, 0.95], 4.0)], (), 6 * NS_PER_S)
    assert [word.uncertain for word in judged] == [True] * 6 + [False] * 3


def test_guess_lowers_certainty_for_a_while() -> None:
    certainty = Certainty()
    foreign = certainty.settle(words([0.3] * 6), 3 * NS_PER_S)
    doubtful = words([0.5, 0.6], 4.0)
    assert all(word.uncertain for word in certainty.judged([*foreign, *doubtful], (), 5 * NS_PER_S))
    late = words([0.5, 0.6], 20.0)
    assert not any(word.uncertain for word in certainty.judged(late, (), 21 * NS_PER_S + FORGET_NS))


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(Whisper(asset_path("whisper-tiny.en")).decode, VoiceActivity())


def recognise(recogniser: Recogniser, sound: Float32) -> list[Recognised]:
    """All steps on the sound, with a second of silence before and after."""
    return list(recogniser.whole(np.pad(sound, SAMPLE_RATE), 800))


def shares(steps: list[Recognised]) -> tuple[int, float]:
    """Committed words, and the share of them that is uncertain."""
    judged: list[Word] = []
    for decoded in steps:
        judged += decoded.committed
        recent = [word for word in decoded.words if word.committed]
        judged[len(judged) - len(recent) :] = recent
    return len(judged), sum(word.uncertain for word in judged) / max(len(judged), 1)


@pytest.mark.assets
def test_clear_english_is_certain(recogniser: Recogniser) -> None:
    for sound in (spoken(ENGLISH), spoken_by_espeak(ENGLISH)):
        count, uncertain = shares(recognise(recogniser, sound))
        assert count > 12
        assert uncertain == 0


@pytest.mark.assets
@pytest.mark.parametrize(
    ("voice", "sentence"),
    [
        ("de", "Das schwarze Blatt Papier befindet sich da oben neben dem Holzstück, und wir gehen morgen nach Hause."),
        ("it", "Gli operai si alzano presto e vanno al lavoro, ma la domenica dormono fino a mezzogiorno."),
        ("pl", "Wczoraj wieczorem poszliśmy z przyjaciółmi nad rzekę, a potem wróciliśmy późno do domu."),
    ],
)
def test_another_language_is_uncertain_or_not_understood(recogniser: Recogniser, voice: str, sentence: str) -> None:
    decoded = recognise(recogniser, spoken_by_espeak(sentence, voice))
    assert any(step.unclear or any(word.uncertain for word in step.words) for step in decoded)
    count, uncertain = shares(decoded)
    assert count == 0 or uncertain > 0.6


@pytest.mark.assets
def test_speech_backwards_is_uncertain(recogniser: Recogniser) -> None:
    count, uncertain = shares(recognise(recogniser, np.ascontiguousarray(spoken(ENGLISH)[::-1])))
    assert count
    assert uncertain > 0.6
