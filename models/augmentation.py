"""Perturbations of training data: what changes in a recording while the emotion in it stays.

Waveforms are perturbed before extraction, into several copies of every clip; rows are perturbed anew in every batch.
Everything is driven by a generator that the caller seeds.
"""

from __future__ import annotations

import msgspec
import numpy as np
import soxr

from mien.messages import Float32

SAMPLE_RATE = 16_000


def perturb_waveform(samples: Float32, rng: np.random.Generator) -> Float32:
    """Another speaker, another room, another microphone: speed, colour, reverberation, noise and gain, each by chance.

    Args:
        samples: shape (n,), mono, 16 kHz.

    Returns:
        shape (m,), m between 0.87 n and 1.15 n, within full scale.
    """
    changed = change_speed(samples, float(rng.uniform(0.87, 1.15)))
    if rng.random() < 0.5:
        changed = colour(changed, rng)
    if rng.random() < 0.35:
        changed = reverberate(changed, rng)
    if rng.random() < 0.6:
        changed = add_noise(changed, float(rng.uniform(8.0, 35.0)), rng)
    changed = changed * np.float32(10.0 ** (rng.uniform(-12.0, 9.0) / 20.0))
    peak = float(np.abs(changed).max(initial=0.0))
    return changed / np.float32(max(1.0, peak))


def change_speed(samples: Float32, factor: float) -> Float32:
    """Play `factor` times as fast, pitch and formants with it: a longer or a shorter vocal tract."""
    if factor == 1.0 or len(samples) == 0:
        return samples
    faster: Float32 = soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE).astype(np.float32)
    return faster


def colour(samples: Float32, rng: np.random.Generator) -> Float32:
    """A microphone's frequency response: a smooth curve of up to about +-6 dB over the mel axis."""
    spectrum = np.fft.rfft(samples)
    mel = np.log1p(np.linspace(0.0, SAMPLE_RATE / 2, len(spectrum)) / 700.0)
    knots = np.linspace(0.0, mel[-1], 7)
    gain_db = np.interp(mel, knots, rng.normal(0.0, 3.0, len(knots)))
    return np.fft.irfft(spectrum * 10.0 ** (gain_db / 20.0), len(samples)).astype(np.float32)


def reverberate(samples: Float32, rng: np.random.Generator) -> Float32:
    """A room: the direct sound, then exponentially decaying noise (Moorer, 1979), 0.1 to 0.6 s to fall by 60 dB."""
    decay_s = float(rng.uniform(0.1, 0.6))
    t = np.arange(int(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.normal(0.0, 1.0, len(t)) * 10.0 ** (-3.0 * t / decay_s)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    tail *= 10.0 ** (rng.uniform(-12.0, 0.0) / 20.0) / np.sqrt(np.sum(tail * tail))
    tail[0] = 1.0
    size = len(samples) + len(tail) - 1
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return wet[: len(samples)].astype(np.float32)


def add_noise(samples: Float32, snr_db: float, rng: np.random.Generator) -> Float32:
    """Noise between white and brown, `snr_db` under the mean power of the sound."""
    spectrum = np.fft.rfft(rng.normal(0.0, 1.0, len(samples)))
    slope = rng.uniform(0.0, 1.0)
    spectrum /= np.maximum(np.linspace(0.0, SAMPLE_RATE / 2, len(spectrum)), 50.0) ** slope
    noise = np.fft.irfft(spectrum, len(samples))
    power = float(np.mean(samples.astype(np.float64) ** 2))
    noise *= np.sqrt(power * 10.0 ** (-snr_db / 10.0) / max(float(np.mean(noise * noise)), 1e-20))
    return (samples + noise).astype(np.float32)


class RowPerturbation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rows of speech differ from batch to batch.

    Attributes:
        window: rows of a training window; a longer stretch of speech is cut at random, a shorter one moved about.
        tempo: the stretch is played up to this share slower or faster, pitch kept.
        bands: the spectrum is moved up or down by at most so many bands: another size of head.
        level: standard deviation of a change of level, in nepers of power.
        hidden_columns: share of the other columns that show nothing, in one window: no single number of the voice
            encoder is to be relied upon.
        hidden_bands, hidden_steps: widest run of bands, and of rows, that shows nothing (SpecAugment, Park et al.,
            Interspeech 2019).
    """

    window: int = 160
    tempo: float = 0.1
    bands: int = 1
    level: float = 1.0
    hidden_columns: float = 0.2
    hidden_bands: int = 10
    hidden_steps: int = 20


def perturb_rows(
    values: Float32,
    mask: Float32,
    mean: Float32,
    spectrum: int,
    settings: RowPerturbation,
    rng: np.random.Generator,
) -> tuple[Float32, Float32]:
    """Rows of one clip to one training window.

    Args:
        values: shape (n, dim), the first `spectrum` columns log-mel bands and the next the log energy.
        mask: shape (n,), 1 where there is voice. mean: shape (dim,), what a hidden band shows.

    Returns:
        values (window, dim), zero where nothing is observed, and mask (window,).
    """
    voiced = np.flatnonzero(mask)
    if len(voiced):
        values, mask = values[voiced[0] : voiced[-1] + 1], mask[voiced[0] : voiced[-1] + 1]
    if len(values):
        length = max(1, round(len(values) * rng.uniform(1.0 - settings.tempo, 1.0 + settings.tempo)))
        played = np.minimum(np.arange(length) * len(values) // length, len(values) - 1)
        values, mask = values[played], mask[played]
    if len(values) > settings.window:
        begin = int(rng.integers(0, len(values) - settings.window + 1))
        values, mask = values[begin : begin + settings.window], mask[begin : begin + settings.window]
    offset = int(rng.integers(0, settings.window - len(values) + 1))
    window = np.zeros((settings.window, values.shape[1]), np.float32)
    observed = np.zeros(settings.window, np.float32)
    window[offset : offset + len(values)] = values
    observed[offset : offset + len(values)] = mask
    moved = int(rng.integers(-settings.bands, settings.bands + 1))
    bands = np.clip(np.arange(spectrum) - moved, 0, spectrum - 1)
    window[:, :spectrum] = window[:, bands]
    window[:, : spectrum + 1] += np.float32(rng.normal(0.0, settings.level))
    width = int(rng.integers(0, settings.hidden_bands + 1))
    first = int(rng.integers(0, spectrum - width + 1))
    window[:, first : first + width] = mean[first : first + width]
    hidden = spectrum + 1 + np.flatnonzero(rng.random(values.shape[1] - spectrum - 1) < settings.hidden_columns)
    window[:, hidden] = mean[hidden]
    width = int(rng.integers(0, settings.hidden_steps + 1))
    first = int(rng.integers(0, settings.window - width + 1))
    if observed.sum() > observed[first : first + width].sum():  # never all of it
        observed[first : first + width] = 0.0
    return window * observed[:, None], observed
