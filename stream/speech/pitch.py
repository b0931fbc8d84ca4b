"""Pitch and periodicity of a voice."""

from __future__ import annotations

import numpy as np

from mien.messages import Float32
from mien.stream.sources.source import SAMPLE_RATE

SPAN = 1024  # samples of a frame: 47 ms to compare and the longest period to shift them by
F0_MIN_HZ, F0_MAX_HZ = 60, 600
LAG_MIN, LAG_MAX = SAMPLE_RATE // F0_MAX_HZ, SAMPLE_RATE // F0_MIN_HZ
THRESHOLD = 0.15
FLOOR = 1e-10  # 100 dB below full scale, under the noise of any microphone


def yin(frames: Float32) -> tuple[Float32, Float32]:
    """Pitch by YIN (de Cheveigne and Kawahara, JASA 111(4), 2002, steps 1 to 5).

    Within 0.7 % of `librosa.yin` on a gliding voice (tested). Our own because it also returns the periodicity, and
    because librosa 0.11 takes 1.6 times as long for two rows (148 against 91 us) and 200 MB.

    Args:
        frames: shape (n, SPAN).

    Returns:
        f0 in Hz, shape (n,), and periodicity, shape (n,): 1 - the cumulative mean normalised difference, in [0, 1].
    """
    width = SPAN - LAG_MAX
    x = frames.astype(np.float64)
    head = np.fft.rfft(x[:, :width], SPAN)
    # No lag up to LAG_MAX reaches beyond SPAN, so the circular correlation is the linear one.
    correlation = np.fft.irfft(np.conj(head) * np.fft.rfft(x), SPAN)[:, : LAG_MAX + 1]
    energy = np.cumsum(x * x, axis=1)
    energy = np.concatenate([np.zeros((len(x), 1)), energy], axis=1)
    power = energy[:, width:] - energy[:, : LAG_MAX + 1]  # shape (n, LAG_MAX + 1)
    difference = np.maximum(power[:, :1] + power - 2.0 * correlation, 0.0)
    mean = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, LAG_MAX + 1)
    # Digital silence has no difference at any lag: without the floor it would look perfectly periodic.
    normal = (difference[:, 1:] + FLOOR) / (mean + FLOOR)  # column i is lag i + 1
    search = normal[:, LAG_MIN - 1 :]
    dip = (search[:, 1:-1] <= search[:, :-2]) & (search[:, 1:-1] < search[:, 2:])
    good = dip & (search[:, 1:-1] < THRESHOLD)
    lowest = np.argmin(search[:, 1:-1], axis=1)
    best = np.where(good.any(axis=1), np.argmax(good, axis=1), lowest) + LAG_MIN  # index into normal
    row = np.arange(len(x))
    left, middle, right = normal[row, best - 1], normal[row, best], normal[row, best + 1]
    curve = left - 2.0 * middle + right
    shift = np.where(curve > 0, 0.5 * (left - right) / np.where(curve > 0, curve, 1.0), 0.0)
    lag = best + 1 + np.clip(shift, -0.5, 0.5)
    return (SAMPLE_RATE / lag).astype(np.float32), np.clip(1.0 - middle, 0.0, 1.0).astype(np.float32)
