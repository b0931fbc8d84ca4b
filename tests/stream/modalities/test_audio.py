from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.clock import Clock
from mien.config import load_config
from mien.errors import ConfigError
from mien.messages import FeatureWindow, Float32
from mien.models.baseline import FORMAT, Baseline, Person, voice_at_rest
from mien.models.voice.columns import ENERGY, F0, GIVEN, N_MELS, PERIODICITY, STATE, VAD, WEIGHT, ZCR
from mien.models.voice.encoder import mel_filters
from mien.models.voice.reference import SHARE
from mien.stream.modalities.audio import (
    F0_REFERENCE_HZ,
    HOP,
    SPEC,
    AudioExtractor,
    AudioRows,
    create,
    voice_reference,
)
from mien.stream.sources.clip import read_sound
from mien.stream.sources.source import SAMPLE_RATE
from mien.stream.speech.pitch import F0_MAX_HZ, F0_MIN_HZ, SPAN, THRESHOLD, yin
from mien.stream.speech.voice_activity import HANGOVER, OFF, ON, Hangover
from tests.stream.sounds import spoken, tone, write_wav

SECONDS = 1.3


@cache
def read_spoken() -> Float32:
    """A sentence, mono 16 kHz."""
    return spoken("What a terrible day. I am so happy to see you.")


@pytest.fixture(scope="module")
def extractor() -> AudioExtractor:
    return AudioExtractor()


@pytest.fixture(scope="module")
def noisy() -> Float32:
    """A gliding, pulsing, noisy tone with silence in it: everything that has state changes on the way."""
    rng = np.random.default_rng(7)
    t = np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    glide = 0.3 * np.sin(2 * np.pi * (120 * t + 60 * t * t)) * (np.sin(2 * np.pi * 3 * t) > -0.3)
    return (glide + rng.normal(0, 0.01, len(t)) * (t < 0.9)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(extractor: AudioExtractor, noisy: Float32) -> AudioRows:
    """Extracted at once."""
    return extractor.extract(noisy)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, int(SECONDS * SAMPLE_RATE)), max_size=60))
def test_any_chunking_gives_the_same_bits(
    extractor: AudioExtractor, noisy: Float32, whole: AudioRows, cuts: list[int]
) -> None:
    extractor.reset()
    made = [extractor.push(part) for part in np.split(noisy, sorted(cuts))]
    made.append(extractor.finish())
    assert np.array_equal(np.concatenate([rows.values for rows in made]), whole.values)
    assert np.array_equal(np.concatenate([rows.valid for rows in made]), whole.valid)


def test_any_chunking_gives_the_same_bits_after_a_running_reference(noisy: Float32) -> None:
    sound = np.concatenate([read_spoken(), noisy, read_spoken()])
    extractor = AudioExtractor(reference=voice_reference())
    whole = extractor.extract(sound)
    assert 0.0 < whole.values[-1, WEIGHT] < 1.0
    for cut in (1, 5000, len(sound) - 321):
        extractor.reset()
        made = [extractor.push(sound[:cut]), extractor.push(sound[cut:]), extractor.finish()]
        assert np.array_equal(np.concatenate([rows.values for rows in made]), whole.values)


def test_a_calibrated_voice_is_compared_with_its_rest(extractor: AudioExtractor) -> None:
    sound = np.tile(read_spoken(), 3)
    raw = extractor.extract(sound)
    person = Person("me", Baseline(FORMAT, "2026-01-01", voice=voice_at_rest(raw.values, raw.valid, SPEC.extractor)))
    compared = AudioExtractor(reference=voice_reference(person)).extract(sound)
    assert (compared.values[:, WEIGHT] == 1.0).all()
    assert (compared.values[:, GIVEN] == np.float32(SHARE)).all()
    assert np.array_equal(compared.valid, raw.valid)
    mean = compared.values[compared.valid][:, STATE].mean(0)
    np.testing.assert_allclose(mean, (1.0 - SHARE) * raw.values[raw.valid][:, STATE].mean(0), atol=0.05)
    with pytest.raises(ConfigError, match="calibrate"):
        create(load_config(None, {"audio.source": "x.wav", "person.name": "nobody-there"}), Clock()).prepare()


def test_gap_in_the_sound_keeps_the_reference() -> None:
    extractor = AudioExtractor(reference=voice_reference())
    extractor.extract(np.concatenate([read_spoken(), np.zeros(16_000, np.float32)]))
    known = extractor.reference
    assert known is not None
    extractor.reset(same_voice=True)
    assert extractor.reference is known
    extractor.reset()
    assert extractor.reference is None


def test_single_samples_give_the_same_bits(extractor: AudioExtractor, noisy: Float32) -> None:
    part = noisy[:5000]
    whole = extractor.extract(part)
    extractor.reset()
    made = [extractor.push(part[index : index + 1]) for index in range(len(part))] + [extractor.finish()]
    assert np.array_equal(np.concatenate([rows.values for rows in made]), whole.values)


@pytest.mark.parametrize("count", [0, 1, 319, 320, 639, 640, 1000, 16_000, 16_001])
def test_a_row_for_every_whole_hop(extractor: AudioExtractor, count: int) -> None:
    rows = extractor.extract(np.zeros(count, np.float32))
    assert rows.values.shape == (count // HOP, SPEC.dim)
    assert rows.valid.shape == (count // HOP,)
    assert np.isfinite(rows.values).all()


def test_filters_equal_librosa() -> None:
    for bands, n_fft in ((N_MELS, 512), (80, 400)):
        expected = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=n_fft, n_mels=bands)  # type: ignore[attr-defined]
        assert np.allclose(mel_filters(bands, n_fft), expected, atol=1e-8)


def test_log_mel_equals_librosa(extractor: AudioExtractor, noisy: Float32) -> None:
    rows = extractor.extract(noisy).values
    padded = np.concatenate([np.zeros(96, np.float32), noisy, np.zeros(512, np.float32)])
    mel = librosa.feature.melspectrogram(
        y=padded, sr=SAMPLE_RATE, n_fft=512, hop_length=HOP, center=False, n_mels=N_MELS
    )
    expected = mel.T[: len(rows)]
    assert np.allclose(np.exp(rows[:, :N_MELS]), expected + 1e-10, rtol=1e-3, atol=1e-8)
    loud = expected > 1e-6
    assert np.abs(rows[:, :N_MELS] - np.log(expected + 1e-10))[loud].max() < 1e-3


def test_pitch_equals_librosa() -> None:
    """Of a voice that glides over two octaves, with overtones and a little noise."""
    hz = np.geomspace(90.0, 360.0, 4 * SAMPLE_RATE)
    phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE
    voice = sum(np.sin(number * phase) / number for number in range(1, 6))
    sound = (0.1 * voice + 0.002 * np.random.default_rng(0).standard_normal(len(hz))).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(sound, SPAN)[::HOP]
    expected = librosa.yin(
        sound, fmin=F0_MIN_HZ, fmax=F0_MAX_HZ, sr=SAMPLE_RATE, frame_length=SPAN, hop_length=HOP,
        trough_threshold=THRESHOLD, center=False,
    )  # fmt: skip
    octaves = np.abs(np.log2(yin(frames)[0] / expected[: len(frames)]))
    assert np.median(octaves) < 0.005
    assert np.mean(octaves < 0.02) > 0.98


def test_zero_crossings_equal_librosa(extractor: AudioExtractor, noisy: Float32) -> None:
    sound = noisy + np.float32(0.0)  # no negative zeros, whose sign librosa does not count
    rows = extractor.extract(sound).values
    padded = np.concatenate([np.zeros(96, np.float32), sound, np.zeros(512, np.float32)])
    shares = librosa.feature.zero_crossing_rate(padded, frame_length=512, hop_length=HOP, center=False, threshold=0.0)
    # librosa divides by the samples of a frame, not by the pairs of them.
    np.testing.assert_allclose(rows[:, ZCR], shares[0, : len(rows)] * 512 / 511, atol=1e-6)


@pytest.mark.parametrize("hz", [65.0, 110.0, 220.0, 440.0, 590.0])
def test_pitch_of_a_tone(extractor: AudioExtractor, hz: float) -> None:
    row = extractor.extract(tone(hz, 1.0)).values[25]
    assert F0_REFERENCE_HZ * 2 ** row[F0] == pytest.approx(hz, rel=0.01)
    assert row[PERIODICITY] > 0.95
    assert row[ZCR] * SAMPLE_RATE == pytest.approx(2 * hz, rel=0.1, abs=40)


def test_noise_holds_the_last_pitch(extractor: AudioExtractor) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    rows = extractor.extract(np.concatenate([tone(200.0, 1.0), noise])).values
    assert np.median(rows[60:, PERIODICITY]) < 0.5
    assert F0_REFERENCE_HZ * 2 ** rows[55, F0] == pytest.approx(200.0, rel=0.05)


def test_energy_is_in_nepers_of_power(extractor: AudioExtractor) -> None:
    quiet, loud = (extractor.extract(tone(200.0, 0.5, a)).values[10, ENERGY] for a in (0.01, 0.1))
    assert loud - quiet == pytest.approx(np.log(100.0), abs=1e-3)


def test_silence_is_masked(extractor: AudioExtractor) -> None:
    assert not extractor.extract(np.zeros(SAMPLE_RATE, np.float32)).valid.any()


@pytest.mark.parametrize("level", [0.001, 0.01, 0.1])
def test_noise_and_chords_are_not_voice(extractor: AudioExtractor, level: float) -> None:
    noise = np.random.default_rng(0).normal(0, level, 5 * SAMPLE_RATE).astype(np.float32)
    chord = tone(220.0, 5.0, level) + tone(277.0, 5.0, level) + tone(330.0, 5.0, level)
    assert not extractor.extract(noise).valid.any()
    assert not extractor.extract(chord).valid.any()


def test_speech_is_valid_and_the_silence_around_it_is_not(extractor: AudioExtractor) -> None:
    speech = spoken("I am so happy to see you today.")
    silence = np.zeros(SAMPLE_RATE, np.float32)
    valid = extractor.extract(np.concatenate([silence, speech, silence])).valid
    inside = valid[50 : 50 + len(speech) // HOP]
    assert inside.mean() > 0.7
    assert not valid[:40].any()
    assert not valid[-25:].any()


def test_hangover_bridges_pauses_with_hysteresis() -> None:
    hangover = Hangover()
    low, middle, high = OFF - 0.1, (ON + OFF) / 2, ON + 0.1

    def detect(*probabilities: float) -> list[bool]:
        return [bool(voiced) for voiced in hangover(np.array(probabilities, np.float32))]

    assert detect(middle, middle) == [False, False]  # not enough to begin with
    assert detect(high, middle) == [True, True]  # enough to stay on
    assert detect(*[low] * (HANGOVER + 3)) == [True] * HANGOVER + [False] * 3
    assert detect(middle) == [False]


def rows_of(path: Path, fast: bool, start_ns: int | None = None) -> list[FeatureWindow]:
    clock = Clock()
    config = load_config(None, {"audio.source": str(path), "clip.fast": fast})
    modality = create(config, clock)
    modality.prepare()
    modality.start(clock.now_ns() if start_ns is None else start_ns)
    made = [rows for rows in modality.rows() if rows is not None]
    assert modality.health().state == "ended"
    modality.close()
    modality.close()
    return made


@pytest.mark.parametrize("start_ns", [0, 7, 10_000_000, 19_999_999, 1_700_000_000_123_456_789])
def test_one_row_in_every_slot_wherever_the_stream_begins(tmp_path: Path, start_ns: int) -> None:
    made = rows_of(write_wav(tmp_path / "tone.wav", tone(200.0, 1.0)), fast=True, start_ns=start_ns)
    times = np.concatenate([rows.times_ns for rows in made])
    assert np.array_equal(np.diff(times // 20_000_000), np.ones(49))
    assert abs(int(times[0]) - start_ns - 10_000_000) <= 10_000_000
    assert all(before.t_end_ns == after.t_start_ns for before, after in pairwise(made))
    assert all(rows.t_start_ns <= rows.times_ns[0] and rows.times_ns[-1] < rows.t_end_ns for rows in made)


def test_paced_fast_and_offline_rows_are_bit_equal(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "speech.wav", spoken("What a terrible day."), rate=16_000)
    offline = AudioExtractor(reference=voice_reference()).extract(read_sound(path))
    for fast in (True, False):
        made = rows_of(path, fast)
        assert np.array_equal(np.concatenate([rows.values for rows in made]), offline.values)
        assert np.array_equal(np.concatenate([rows.valid for rows in made]), offline.valid)


def test_rows_fit_the_specification_and_say_when_they_were_read(tmp_path: Path) -> None:
    made = rows_of(write_wav(tmp_path / "tone.wav", tone(200.0, 0.5)), fast=False)
    for rows in made:
        assert rows.values.dtype == np.float32
        assert rows.values.shape == (len(rows.times_ns), SPEC.dim)
        assert rows.stamps["read"] >= rows.times_ns[0]
    assert 0.0 <= np.concatenate([rows.values for rows in made])[:, VAD].max() <= 1.0
