"""Augmentation of training audio that changes the recording but not its emotion.

Waveforms are perturbed before extraction, into several copies of every clip. All randomness comes from the caller's
generator.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import soxr

from mien.messages import Float32
from mien.models.voice.encoder import SAMPLE_RATE


def perturb_waveform(samples: Float32, rng: np.random.Generator) -> Float32:
    """Simulate another speaker, room, microphone, background and transmission, each by chance.

    Applied in physical order. Loudness and codec differ between corpora, and must not become cues of emotions.

    Args:
        samples: shape (n,), mono, 16 kHz.

    Returns:
        shape (m,), m between 0.87 n and 1.15 n, within full scale.
    """
    if len(samples) == 0:
        return samples
    changed = change_speed(samples, float(rng.uniform(0.87, 1.15)))
    if rng.random() < 0.35:
        changed = reverberate(changed, rng)
    if rng.random() < 0.5:
        surroundings = add_babble if rng.random() < 0.35 else add_noise
        changed = surroundings(changed, float(rng.uniform(3.0, 35.0)), rng)
    if rng.random() < 0.6:
        changed = colour(changed, rng)
    peak = float(np.abs(changed).max(initial=0.0))
    gain = 10.0 ** (rng.uniform(-32.0, 6.0) / 20.0)  # from faint to 6 dB into clipping
    changed = np.clip(changed * np.float32(gain / max(peak, 1e-9)), -1.0, 1.0)
    chance = rng.random()
    if chance < 0.15:
        changed = telephone(changed)
    elif chance < 0.7:
        changed = transcode(changed, *CODECS[int(rng.integers(len(CODECS)))])
    return np.clip(changed, -1.0, 1.0)  # a codec may overshoot


def change_speed(samples: Float32, factor: float) -> Float32:
    """Play `factor` times as fast, which also shifts pitch and formants: a longer or a shorter vocal tract."""
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
    """Add noise between white and brown, `snr_db` below the mean power of the sound."""
    spectrum = np.fft.rfft(rng.normal(0.0, 1.0, len(samples)))
    slope = rng.uniform(0.0, 1.0)
    spectrum /= np.maximum(np.linspace(0.0, SAMPLE_RATE / 2, len(spectrum)), 50.0) ** slope
    return _mixed(samples, np.fft.irfft(spectrum, len(samples)), snr_db)


def add_babble(samples: Float32, snr_db: float, rng: np.random.Generator) -> Float32:
    """Add background voices, `snr_db` below the mean power of the sound: speech without intelligible words.

    The babble is the sound itself, overlaid several times, backwards and at other speeds and offsets.
    """
    if len(samples) == 0:
        return samples
    babble = np.zeros(len(samples), np.float32)
    for _ in range(6):
        voice = change_speed(samples[::-1].copy(), float(rng.uniform(0.8, 1.25)))
        babble += np.roll(np.resize(voice, len(samples)), int(rng.integers(len(samples)))) * rng.uniform(0.4, 1.0)
    return _mixed(samples, babble, snr_db)


def _mixed(samples: Float32, noise: npt.NDArray[np.floating], snr_db: float) -> Float32:
    """The sound with noise `snr_db` below its mean power."""
    power, noise_power = (float(np.mean(part.astype(np.float64) ** 2)) for part in (samples, noise))
    gain = np.sqrt(power * 10.0 ** (-snr_db / 10.0) / max(noise_power, 1e-20))
    mixed: Float32 = (samples + noise * gain).astype(np.float32)
    return mixed


def telephone(samples: Float32) -> Float32:
    """A telephone line: 300 to 3400 Hz, eight bits a sample in the mu-law of ITU-T G.711."""
    import librosa  # imported here: it takes a second to load

    if len(samples) == 0:
        return samples
    spectrum = np.fft.rfft(samples)
    hz = np.linspace(0.0, SAMPLE_RATE / 2, len(spectrum))
    narrow = np.clip(np.fft.irfft(spectrum * ((hz > 300.0) & (hz < 3400.0)), len(samples)), -1.0, 1.0)
    coded = np.round(librosa.mu_compress(narrow, mu=255, quantize=False) * 127.0) / 127.0
    decoded_sound: Float32 = librosa.mu_expand(coded, mu=255, quantize=False).astype(np.float32)
    return decoded_sound


# Container, encoder and bits a second.
CODECS = (
    ("ogg", "libopus", 10_000), ("ogg", "libopus", 16_000), ("ogg", "libopus", 28_000), ("ogg", "libopus", 64_000),
    ("adts", "aac", 24_000), ("adts", "aac", 48_000), ("mp3", "libmp3lame", 16_000), ("mp3", "libmp3lame", 32_000),
)  # fmt: skip


def transcode(samples: Float32, container: str, codec: str, bits_per_s: int) -> Float32:
    """Encode and decode with a lossy codec; the length is kept."""
    import av  # imported here: training from extracted rows does not need it

    if len(samples) < SAMPLE_RATE // 10:  # shorter than a packet of some codecs
        return samples
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = bits_per_s
        planes = (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(planes, format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    file.seek(0)
    with av.open(file) as coded:
        rate, decoded_sound = SAMPLE_RATE, [np.zeros(0, np.float32)]
        resampler = av.AudioResampler(format="flt", layout="mono")
        for decoded in coded.decode(audio=0):
            rate = decoded.sample_rate
            decoded_sound += [part.to_ndarray().reshape(-1) for part in resampler.resample(decoded)]
    resampled: Float32 = soxr.resample(np.concatenate(decoded_sound), rate, SAMPLE_RATE).astype(np.float32)
    return np.pad(resampled[: len(samples)], (0, max(0, len(samples) - len(resampled))))
