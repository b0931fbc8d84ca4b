from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.messages import Float32
from mien.models.augmentation import (
    RowPerturbation,
    add_noise,
    change_speed,
    colour,
    perturb_rows,
    perturb_waveform,
    reverberate,
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
def test_noise_has_the_power_that_was_asked_for(snr_db: float) -> None:
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


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 400), voiced=st.floats(0.05, 1.0))
def test_rows_fill_a_window_and_hide_what_is_not_observed(seed: int, count: int, voiced: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(5.0, 1.0, (count, 69)).astype(np.float32)
    mask = (rng.random(count) < voiced).astype(np.float32)
    mask[0] = 1.0
    window, seen = perturb_rows(values, mask, np.zeros(69, np.float32), 64, RowPerturbation(), rng)
    assert window.shape == (160, 69)
    assert seen.shape == (160,)
    assert seen.sum() > 0
    assert not window[seen == 0].any()
    assert set(np.unique(seen)) <= {0.0, 1.0}


def test_without_perturbation_rows_are_moved_and_nothing_else() -> None:
    still = RowPerturbation(tempo=0.0, bands=0, level=0.0, hidden_bands=0, hidden_steps=0)
    values = np.random.default_rng(0).normal(0, 1, (50, 69)).astype(np.float32)
    mask = np.ones(50, np.float32)
    window, seen = perturb_rows(values, mask, np.zeros(69, np.float32), 64, still, np.random.default_rng(1))
    first = int(np.flatnonzero(seen)[0])
    assert np.array_equal(window[first : first + 50], values)
    assert seen.sum() == 50
