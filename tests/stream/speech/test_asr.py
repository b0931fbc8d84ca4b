from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.assets import asset_path
from mien.clock import NS_PER_S
from mien.errors import AssetError, ConfigError
from mien.messages import Float32, Word
from mien.stream.sources.clip import read_sound
from mien.stream.sources.source import NS_PER_SAMPLE, SAMPLE_RATE, Chunk
from mien.stream.speech.agreement import agreed
from mien.stream.speech.asr import LONGEST_S, Decode, Recognised, Recogniser
from mien.stream.speech.backlog import Backlog
from mien.stream.speech.repetition import repetition
from mien.stream.speech.voice_activity import VoiceActivity
from mien.stream.speech.whisper import Hypothesis, Whisper
from tests.stream.sounds import spoken, spoken_by_espeak, tone

STEP = 800 * SAMPLE_RATE // 1000  # samples
SENTENCE = "The weather is lovely today, and we are going to the sea with all of our friends."
JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
GRID: tuple[dict[str, str], ...] = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {},
    {},
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


def corpora() -> Path:
    folder = os.environ.get("MIEN_CORPORA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the corpora folder in MIEN_CORPORA")
    return Path(folder)


def whisper(asr: str) -> Whisper:
    return Whisper(asset_path(f"whisper-{asr}"))


@pytest.fixture(scope="module")
def tiny() -> Whisper:
    return whisper("tiny.en")


@pytest.fixture(scope="module")
def speech() -> Float32:
    """Speech, with a second of silence before and after."""
    real = bool(os.environ.get("MIEN_CORPORA"))
    sound = read_sound(corpora() / "speech/misc/jfk.flac") if real else spoken(SENTENCE)
    return np.pad(sound, SAMPLE_RATE)


def steps_of(decode: Decode, samples: Float32, step: int = STEP) -> list[Recognised]:
    """All steps of a recogniser on `samples`, the end of the stream last."""
    recogniser = Recogniser(decode, VoiceActivity())
    steps = []
    for begin in range(0, len(samples), step):
        part = samples[begin : begin + step]
        steps.append(recogniser.step(part, (begin + len(part)) * NS_PER_SAMPLE, continuous=begin > 0))
    return [*steps, recogniser.finish()]


def committed(steps: Sequence[Recognised]) -> list[Word]:
    return [word for step in steps for word in step.committed]


def spelled(words: Sequence[Word]) -> str:
    return plain_text(" ".join(word.text for word in words))


def plain_text(text: str) -> str:
    return re.sub(r"[^a-z0-9' ]", "", text.lower())


@pytest.mark.parametrize(
    ("previous", "current", "count"),
    [
        ("", "", 0),
        ("", "so be it", 0),
        ("so", "", 0),
        ("so be", "so be it", 2),
        ("so be it", "so be", 2),
        ("so bee", "so be it", 1),
        ("See be", "so be", 0),
        ("Well, that is it.", "well that is fine", 3),  # case and punctuation change with what follows
        ("a b x d", "a b c d", 2),  # agreement after a difference is none
        ("it is 7", "it is 8", 2),
        ("Grüße an", "grüße an alle", 2),
        ("... yes", "yes", 0),
    ],
)
def test_agreement(previous: str, current: str, count: int) -> None:
    assert agreed(previous.split(), current.split()) == count


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ("", 0, None),
        ("no no no never", 0, None),
        ("ha ha ha ha ha ha ha", 0, (0, 1, 7)),
        ("we do we do not", 0, None),
        ("we do we do we do we do", 0, (0, 2, 4)),
        ("it was fine. It was fine. It was fine.", 0, (0, 3, 3)),
        ("ask what you can do ask what you can do", 0, (0, 5, 2)),
        ("you can do for me what I can do for you", 0, None),
        ("all went well and then and then and then and then", 0, (3, 2, 4)),
        # Known words count as occurrences, but a passage that ends among them is settled.
        ("we are here. It was a fine day. it was a fine day And", 8, (3, 5, 2)),
        ("it was a fine day and it was a fine night", 6, None),
        ("no no no no no no no but yes", 7, None),
    ],
)
def test_repeated_passage_is_found(text: str, known: int, found: tuple[int, int, int] | None) -> None:
    begin, size, times = found or (0, 1, 0)
    assert repetition(text.split(), known) == [range(begin + n * size, begin + (n + 1) * size) for n in range(times)]


REPEATED = [
    ("No!", 5, "I do not want that. Please listen to me now."),
    ("Thank you.", 4, "The report has four parts."),
    ("I am so sorry.", 6, "My brother is coming home tomorrow."),
    ("We are going to win the game today.", 3, "She told me everything about the accident."),
]


@pytest.mark.assets
@pytest.mark.parametrize(("passage", "times", "sentence"), REPEATED)
@pytest.mark.parametrize("voice", ["slt", "espeak"])
def test_speech_after_a_repetition_is_recognised(
    tiny: Whisper, passage: str, times: int, sentence: str, voice: str
) -> None:
    text = f"{passage} " * times + sentence
    sound = spoken(text) if voice == "slt" else spoken_by_espeak(text)
    words = spelled(committed(steps_of(tiny.decode, sound))).split()
    expected, again = plain_text(sentence).split(), plain_text(passage).split() * times
    assert jiwer.wer(" ".join(expected), " ".join(words[-len(expected) :])) <= 0.25
    assert set(words[: -len(expected)]) == set(again)
    assert abs(len(words) - len(expected) - len(again)) <= 2, "as often as it was said, or nearly so"


class ScriptedDecoder:
    """A decoder prompted at first with `no, no, no`, which it then repeats."""

    def __init__(self, decoder: Whisper) -> None:
        self.decoder = decoder
        self.first: Hypothesis | None = None

    def decode(self, samples: Float32, prefix: str = "") -> Hypothesis:
        if self.first is not None:
            return self.decoder.decode(samples, prefix)
        self.first = self.decoder.decode(samples, "No, no, no,")
        return self.first


@pytest.mark.assets
def test_decoder_loop_is_cut_and_later_speech_recognised(tiny: Whisper) -> None:
    sound = spoken_by_espeak("No! " * 5 + "I do not want that. Please listen to me now.")
    misled = ScriptedDecoder(tiny)
    words = spelled(committed(steps_of(misled.decode, sound, step=len(sound)))).split()
    assert misled.first is not None
    looped = [word.text.strip(".,!").lower() for word in misled.first.words]
    assert looped.count("no") == len(looped) > 8, "the decoder must have looped for this test to mean anything"
    assert 1 <= words.count("no") <= 6
    assert " ".join(words).endswith("i do not want that please listen to me now")


def chunks(sizes: Sequence[int], begin: int = 0, continuous: bool = False) -> list[Chunk]:
    """Chunks of samples that count on: 0, 1, 2 ..."""
    edges = np.cumsum([begin, *sizes])
    return [
        Chunk(np.arange(a, b, dtype=np.float32), int(a) * NS_PER_SAMPLE, int(b) * NS_PER_SAMPLE, continuous or i > 0)
        for i, (a, b) in enumerate(pairwise(edges))
    ]


def drained(backlog: Backlog, rest: bool = False) -> list[Chunk]:
    taken = []
    while (step := backlog.take(rest)) is not None:
        taken.append(step)
    return taken


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_steps_do_not_depend_on_chunking(sizes: list[int]) -> None:
    backlog = Backlog(200, None)
    taken = []
    for chunk in chunks(sizes):
        backlog.push(chunk)
        taken += drained(backlog)
    taken += drained(backlog, rest=True)
    whole, left = divmod(sum(sizes), 3200)
    assert [len(step.samples) for step in taken] == [3200] * whole + [left] * (left > 0)
    assert np.array_equal(np.concatenate([step.samples for step in taken]), np.arange(sum(sizes)))
    assert [step.t_end_ns for step in taken] == [(int(step.samples[-1]) + 1) * NS_PER_SAMPLE for step in taken]
    assert [step.continuous for step in taken] == [False] + [True] * (len(taken) - 1)
    assert backlog.skipped_s == 0


def test_late_step_takes_all_pending_sound() -> None:
    backlog = Backlog(200, bound_s=6.0)
    for chunk in chunks([1600] * 9):
        backlog.push(chunk)
    step = backlog.take()
    assert step is not None
    assert len(step.samples) == 4 * 3200  # up to the newest multiple of a step
    assert backlog.take() is None
    assert backlog.waiting_s == pytest.approx(0.1)
    assert backlog.skipped_s == 0


def test_a_backlog_is_skipped_to_the_newest_and_counted() -> None:
    backlog = Backlog(800, bound_s=6.0)
    sound = chunks([1600] * 100)  # 10 s without a step
    for chunk in sound:
        backlog.push(chunk)
        assert backlog.waiting_s <= 6.0
    step = backlog.take(rest=True)
    assert step is not None
    assert step.t_end_ns == sound[-1].t_end_ns
    assert not step.continuous
    assert backlog.skipped_s + len(step.samples) / SAMPLE_RATE == pytest.approx(10.0)
    assert backlog.skipped_s == pytest.approx(6.0)


@pytest.mark.parametrize("bound_s", [None, 6.0])
def test_step_ends_at_a_gap(bound_s: float | None) -> None:
    backlog = Backlog(200, bound_s)
    for chunk in chunks([1600, 2000]) + chunks([3000, 3400], begin=80_000):
        backlog.push(chunk)
    taken = drained(backlog)
    assert [len(step.samples) for step in taken] == ([3200, 400, 3200, 3200] if bound_s is None else [3600, 6400])
    assert [step.continuous for step in taken] == ([False, True, False, True] if bound_s is None else [False, False])
    assert taken[-1].t_end_ns == 86_400 * NS_PER_SAMPLE


@pytest.mark.assets
@pytest.mark.parametrize(
    "sound",
    [np.zeros(6 * SAMPLE_RATE, np.float32), tone(440, 6), tone(97, 6, 0.5)],
    ids=["silence", "tone", "hum"],
)
def test_non_voice_is_not_decoded(sound: Float32) -> None:
    def decode(samples: Float32, prefix: str) -> Hypothesis:
        pytest.fail(f"decoded {len(samples)} samples after {prefix!r}")

    recogniser = Recogniser(decode, VoiceActivity())
    for begin in range(0, len(sound), STEP):
        part = sound[begin : begin + STEP]
        assert recogniser.step(part, (begin + len(part)) * NS_PER_SAMPLE).words == ()
    assert recogniser.finish().words == ()


@pytest.mark.assets
def test_noise_and_clicks_give_no_words(tiny: Whisper) -> None:
    generator = np.random.default_rng(7)
    noise = (0.05 * generator.standard_normal(10 * SAMPLE_RATE)).astype(np.float32)
    noise[:: SAMPLE_RATE // 2] = 1.0
    assert committed(steps_of(tiny.decode, noise)) == []


@pytest.mark.assets
def test_the_same_sound_gives_the_same_words(tiny: Whisper, speech: Float32) -> None:
    assert steps_of(tiny.decode, speech) == steps_of(tiny.decode, speech)


@pytest.mark.assets
def test_committed_words_are_final_and_ordered(tiny: Whisper, speech: Float32) -> None:
    steps = steps_of(tiny.decode, speech)
    words: list[Word] = []
    for step in steps:
        words += step.committed
        firm = [word for word in step.words if word.committed]
        assert firm == words[len(words) - len(firm) :]
        assert all(not word.committed for word in step.words[len(firm) :])
        assert all(word.t_end_ns <= step.t_end_ns for word in step.words)
    assert len(words) > 12
    assert all(word.t_start_ns <= word.t_end_ns for word in words)
    assert all(a.t_end_ns <= b.t_end_ns and a.t_start_ns <= b.t_start_ns for a, b in pairwise(words))
    # A second of silence before and after: no word may stand there.
    assert words[0].t_start_ns >= 0.9 * NS_PER_S
    assert words[-1].t_end_ns <= (len(speech) / SAMPLE_RATE - 0.7) * NS_PER_S


@pytest.mark.assets
def test_the_end_of_the_stream_commits_everything(tiny: Whisper, speech: Float32) -> None:
    whole = spelled(committed(steps_of(tiny.decode, speech))).split()
    steps = steps_of(tiny.decode, speech[: len(speech) * 2 // 3])  # in the middle of the sentence
    assert any(not word.committed for word in steps[-2].words)
    assert all(word.committed for word in steps[-1].words)
    words = spelled(committed(steps)).split()
    assert words[:-2] == whole[: len(words) - 2]
    assert len(words) > len(whole) // 2


@pytest.mark.assets
def test_gap_commits_earlier_words(tiny: Whisper, speech: Float32) -> None:
    recogniser = Recogniser(tiny.decode, VoiceActivity())
    cut = 4 * STEP
    before = [
        recogniser.step(speech[i : i + STEP], (i + STEP) * NS_PER_SAMPLE, continuous=i > 0) for i in range(0, cut, STEP)
    ]
    tentative = [word.text for word in before[-1].words if not word.committed]
    assert tentative
    later_ns = 60 * NS_PER_S
    after = recogniser.step(np.zeros(STEP, np.float32), later_ns, continuous=False)
    assert [word.text for word in after.committed] == tentative
    assert all(word.t_end_ns <= cut * NS_PER_SAMPLE for word in after.committed)


class CountingDecoder:
    """Lets a decoder work and remembers how much it was given."""

    def __init__(self, decoder: Whisper) -> None:
        self.decoder = decoder
        self.seconds: list[float] = []

    def decode(self, samples: Float32, prefix: str = "") -> Hypothesis:
        self.seconds.append(len(samples) / SAMPLE_RATE)
        return self.decoder.decode(samples, prefix)


@pytest.mark.assets
def test_long_speech_is_decoded_in_short_windows(tiny: Whisper, speech: Float32) -> None:
    utterance = speech[SAMPLE_RATE:-SAMPLE_RATE]
    endless = np.concatenate([utterance] * (1 + 18 * SAMPLE_RATE // len(utterance)))
    decoder = CountingDecoder(tiny)
    recogniser = Recogniser(decoder.decode, VoiceActivity())
    words: list[Word] = []
    for begin in range(0, len(endless), STEP):
        part = endless[begin : begin + STEP]
        words += recogniser.step(part, (begin + len(part)) * NS_PER_SAMPLE).committed
    assert max(decoder.seconds) <= LONGEST_S + STEP / SAMPLE_RATE
    assert np.mean(decoder.seconds) < 9.0
    assert len(words) > 30


@pytest.mark.assets
def test_unusable_models_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"lacks model\.bin"):
        Whisper(tmp_path)
    folder = asset_path("whisper-tiny.en")
    with pytest.raises(ConfigError, match="English only"):
        Whisper(folder, language="de")
    with pytest.raises(ConfigError, match=r"text\.compute_type"):
        Whisper(folder, compute_type="int7")
    with pytest.raises(ConfigError, match=r"text\.device"):
        Whisper(folder, device="abacus")
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:1_000_000])
    with pytest.raises(AssetError, match="cannot read the model"):
        Whisper(tmp_path)


@pytest.mark.assets
def test_a_famous_sentence(tiny: Whisper) -> None:
    steps = steps_of(tiny.decode, read_sound(corpora() / "speech/misc/jfk.flac"))
    assert jiwer.wer(JFK, spelled(committed(steps))) <= 0.10
    # In time of the sound; how long the work takes depends on the machine and is measured by `mien bench`.
    lags_s = [(step.t_end_ns - word.t_end_ns) / NS_PER_S for step in steps for word in step.committed]
    assert np.median(lags_s) <= 1.5


@pytest.mark.assets
def test_commands_in_clips() -> None:
    clips = sorted((corpora() / "video").glob("grid_*.mpg"))
    decoder = whisper("base")
    found = 0
    for clip in clips:
        code = clip.stem.removeprefix("grid_")
        words = spelled(committed(steps_of(decoder.decode, read_sound(clip)))).split()
        found += sum(GRID[place][code[place]] in words for place in (0, 1, 2, 5))
    assert len(clips) == 5
    assert found >= 12
