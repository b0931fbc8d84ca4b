from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.messages import Float32
from mien.models.data.augmentation import (
    CODECS,
    add_babble,
    add_noise,
    change_speed,
    colour,
    perturb_waveform,
    reverberate,
    telephone,
    transcode,
)

RATE = 16_000


def tone(hz: float = 400.0, seconds: float = 1.0) -> Float32:
    return (0.1 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def peak_hz(samples: Float32) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


@pytest.mark.parametrize("factor", [0.87, 1.0, 1.15])
def test_speed_moves_pitch_and_length_together(factor: float) -> None:
    changed = change_speed(tone(), factor)
    assert len(changed) == pytest.approx(RATE / factor, abs=2)
    assert peak_hz(changed) == pytest.approx(400.0 * factor, rel=0.01)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_requested_power(snr_db: float) -> None:
    clean = tone()
    noise = add_noise(clean, snr_db, np.random.default_rng(0)).astype(np.float64) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.1)


def test_reverberation_begins_with_the_direct_sound() -> None:
    click = np.zeros(RATE, np.float32)
    click[100] = 1.0
    wet = reverberate(click, np.random.default_rng(0))
    assert wet[100] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(wet[:100]).max() < 1e-4
    assert 0.05 < np.sum(wet[101:] ** 2) < 1.1
    assert np.abs(wet[100 + int(0.6 * RATE) :]).max() < 0.01


def test_colour_keeps_length_and_moves_power_by_decibels() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, RATE).astype(np.float32)
    changed = colour(noise, np.random.default_rng(2))
    assert len(changed) == len(noise)
    assert 0.25 < np.mean(changed**2) / np.mean(noise**2) < 4.0
    assert not np.allclose(changed, noise, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(320, 20_000))
def test_perturbed_sound_is_finite_and_within_full_scale(seed: int, count: int) -> None:
    changed = perturb_waveform(tone(300.0, 2.0)[:count], np.random.default_rng(seed))
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert np.abs(changed).max() <= 1.0
    assert 0.85 * count < len(changed) < 1.17 * count


def test_the_same_generator_gives_the_same_copy() -> None:
    first, second = (perturb_waveform(tone(), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first[:1000], perturb_waveform(tone(), np.random.default_rng(6))[:1000])


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec[1]}-{codec[2]}")
def test_a_codec_leaves_the_length_and_most_of_a_voice(codec: tuple[str, str, int]) -> None:
    t = np.arange(RATE) / RATE
    clean = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 15)) * 0.1 * (np.sin(2 * np.pi * 3 * t) > 0)
    decoded = transcode(clean.astype(np.float32), *codec)
    assert decoded.shape == clean.shape
    assert decoded.dtype == np.float32
    lags = [np.corrcoef(clean[4000:12000], decoded[4000 + lag : 12000 + lag])[0, 1] for lag in range(0, 1500, 2)]
    assert 0.8 < max(lags) < 0.99999


def test_a_telephone_keeps_the_middle_of_the_spectrum() -> None:
    assert np.sqrt(np.mean(telephone(tone(1000.0)) ** 2)) == pytest.approx(0.1 / np.sqrt(2), rel=0.05)
    for hz in (100.0, 5000.0):
        assert np.sqrt(np.mean(telephone(tone(hz)) ** 2)) < 0.003


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_babble_has_the_requested_power(snr_db: float) -> None:
    clean = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    babble = add_babble(clean, snr_db, np.random.default_rng(1)).astype(np.float64) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(babble**2)) == pytest.approx(snr_db, abs=0.1)


def test_silence_stays_silence() -> None:
    for seed in range(20):
        assert len(perturb_waveform(np.zeros(0, np.float32), np.random.default_rng(seed))) == 0
