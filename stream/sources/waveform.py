"""Decoded audio to a single waveform: mono, 16 kHz, in which a sample's index is its time."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from mien.messages import Bool, Float32
from mien.stream.sources.source import SAMPLE_RATE

GAP_S = 0.05  # tolerated deviation of timestamps from the sample count
_SLOPE_S = 2.0  # audio over which the true rate is measured
_SETTLE_S = 2.0  # time constant for converging to the timestamps
_NEAR_S, _EVEN = 0.005, 0.01  # this close to its timestamps and to the nominal rate, playback is left alone again
_BEND = (0.4, 2.5)  # slowest and fastest playback factors
_FADE_S = 0.005  # crossfade at the edges of inserted silence
_CANCELLED = 0.2  # energy of the mean relative to the channels' energy by their number, below which they cancel out
_TOGETHER = 0.5  # above which they no longer do
_MEMORY_S = 0.5  # time constant of these energies
_FAINT = 1e-9  # energy of -90 dB: too faint to decide on


class Downmix:
    """Channels to mono: their mean, or the strongest if they cancel out, as with a plug of opposite phase.

    Channels that were silent so far are left out: a film's dialogue may be on one of six.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._energies: Float32 | None = None  # of each channel, and of their mean
        self._weights: Float32 | None = None
        self._audible: Bool = np.zeros(0, np.bool_)  # the channels that were not silent so far

    def __call__(self, channels: Float32) -> Float32:
        """(c, n) to (n,). The number of channels may change from call to call."""
        count, size = channels.shape
        if count == 1 or size == 0:
            self._energies = self._weights = None
            return self._mixed(channels, np.ones(count, np.float32))
        if self._energies is None or len(self._energies) != count + 1:
            self._energies, self._weights, self._audible = None, None, np.zeros(count, np.bool_)
        before, self._weights = self._weights, self._decide(channels)
        if before is None or np.array_equal(before, self._weights):
            return self._mixed(channels, self._weights)
        ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
        old, new = self._mixed(channels, before), self._mixed(channels, self._weights)
        return old + ramp * (new - old)

    @staticmethod
    def _mixed(channels: Float32, weights: Float32) -> Float32:
        used = channels if weights.all() else channels[weights > 0]
        mean: Float32 = used.mean(axis=0, dtype=np.float32)
        return mean

    def _decide(self, channels: Float32) -> Float32:
        """The weight of each channel: equal for all that were not silent, or one for all."""
        count, size = channels.shape
        powers = np.mean(channels * channels, axis=1)
        audible = self._audible | (powers > _FAINT)
        if not audible.any():
            return np.full(count, 1.0 / count, np.float32)
        even: Float32 = (audible / audible.sum()).astype(np.float32)
        now: Float32 = np.append(powers, np.mean(self._mixed(channels, even) ** 2)).astype(np.float32)
        if self._energies is None or not np.array_equal(audible, self._audible):
            self._energies = now  # a different mean from before
        else:
            old = np.float32(np.exp(-size / self._rate / _MEMORY_S))
            self._energies = old * self._energies + (1 - old) * now
        self._audible = audible
        each, together = self._energies[:count], float(self._energies[count])
        weights = even if self._weights is None else self._weights
        if each.max() < _FAINT:
            return weights
        # The mean of uncorrelated channels has their number times less energy than they have.
        share = together * int(audible.sum()) / float(each[audible].mean())
        one = weights.max() == 1.0
        if share > _TOGETHER or (share >= _CANCELLED and not one):
            return even
        strongest: Float32 = np.eye(count, dtype=np.float32)[int(each.argmax())]
        return weights if one else strongest


class Waveform:
    """Decoded frames in, samples out, on the timeline of their timestamps.

    Missing audio becomes silence. If there is slightly more or less audio than the timestamps leave room for, because a
    device's and a recorder's clock drift apart, it is played slightly faster or slower: nothing is cut, nothing clicks.
    Rate and layout may change midway.
    """

    def __init__(self) -> None:
        self._rate = 0.0
        self._base_s = 0.0  # time at which the current rate starts
        self._count = 0  # samples at this rate since then
        self._begun = False

    @property
    def end_s(self) -> float:
        """Time up to which there are samples."""
        return self._base_s + (self._count / self._rate if self._rate else 0.0)

    def push(self, frame: Any, t_s: float | None) -> list[Float32]:
        """Samples of a decoded frame (`av.AudioFrame`) that starts `t_s` seconds after time zero, if known."""
        return self.push_channels(_channels(frame), frame.sample_rate, t_s)

    def push_channels(self, channels: Float32, rate: float, t_s: float | None) -> list[Float32]:
        """As `push`, for samples (channels, n) at `rate` per second, full scale 1, finite."""
        out: list[Float32] = []
        if rate != self._rate:
            out += self.finish()
            self._base_s, self._count = self.end_s, 0
            self._begin(rate)
        samples = self._fit(self._downmix(channels), t_s)
        self._count += len(samples)
        if len(samples):
            out.append(self._resampled(samples))
        return out

    def finish(self) -> list[Float32]:
        return [self._resampled(np.zeros(0, np.float32), last=True)] if self._rate else []

    def _begin(self, rate: float) -> None:
        self._rate = rate
        self._downmix = Downmix(rate)
        self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self._audible = 0  # samples received since `_marks` starts
        self._marks: deque[tuple[float, int]] = deque()  # (stamp in seconds, `_heard` at it)
        self._next_s: float | None = None  # where the next frame is expected to start
        self._last = np.float32(0.0)  # the newest sample
        self._drifts = False
        self._bent: Float32 | None = None  # samples not yet played, once the playback rate is changed
        self._position = 0.0  # in `_bent`, of the next sample to play

    def _resampled(self, samples: Float32, last: bool = False) -> Float32:
        out: Float32 = self._resampler.resample_chunk(samples, last=last)
        return out

    def _fit(self, samples: Float32, t_s: float | None) -> Float32:
        """A frame's samples, fitted to its timestamp."""
        if t_s is None:
            self._begun = True
            return samples
        error_s = t_s - self.end_s
        if not self._begun:
            self._begun = True
            self._note(t_s, samples)
            if error_s > 0:
                return np.concatenate([np.zeros(round(error_s * self._rate), np.float32), samples])
            return samples[round(-error_s * self._rate) :]  # an encoder's priming, before time zero
        missing_s = 0.0 if self._next_s is None else t_s - self._next_s
        if error_s > GAP_S and missing_s > GAP_S / 2:
            whole = self._after_silence(samples, round(error_s * self._rate))
            self._marks.clear()
            self._note(t_s, samples)
            return whole
        if missing_s < -GAP_S:
            self._marks.clear()  # a jump says nothing about the rate
        slope, before = self._slope(t_s), self._last
        self._note(t_s, samples)
        if abs(error_s) > GAP_S:
            self._drifts = True
        elif abs(error_s) < _NEAR_S and abs(slope - 1.0) < _EVEN:
            self._drifts = False
        if self._bent is None:
            if not self._drifts:
                return samples
            self._bent, self._position = np.array([before], np.float32), 1.0
        factor = min(max(slope + error_s / _SETTLE_S, _BEND[0]), _BEND[1]) if self._drifts else 1.0
        return self._play(self._bent, samples, factor)

    def _note(self, t_s: float, samples: Float32) -> None:
        self._next_s = t_s + len(samples) / self._rate
        self._marks.append((t_s, self._audible))
        self._audible += len(samples)
        if len(samples):
            self._last = samples[-1]

    def _slope(self, t_s: float) -> float:
        """Seconds by timestamps per second by sample count, over the last samples."""
        while len(self._marks) > 1 and self._marks[1][0] < t_s - _SLOPE_S:
            self._marks.popleft()
        if not self._marks or self._audible - self._marks[0][1] < self._rate * _SLOPE_S / 4:
            return 1.0
        then_s, count = self._marks[0]
        return (t_s - then_s) * self._rate / (self._audible - count)

    def _after_silence(self, samples: Float32, count: int) -> Float32:
        """The samples after that many of silence, without a step at either edge."""
        silence = np.zeros(count, np.float32)
        fade = min(round(_FADE_S * self._rate), count, len(samples))
        ramp = np.linspace(1.0, 0.0, fade, dtype=np.float32)
        silence[:fade] = self._last * ramp
        samples = samples.copy()
        samples[:fade] *= ramp[::-1]
        self._bent, self._drifts = None, False
        return np.concatenate([silence, samples])

    def _play(self, before: Float32, samples: Float32, factor: float) -> Float32:
        """Stretch samples by a factor, with cubic (Catmull-Rom) interpolation, from where the last ones ended."""
        line = np.concatenate([before, samples])
        at = self._position + np.arange(max(0, int((len(line) - 2 - self._position) * factor) + 1)) / factor
        at = at[at < len(line) - 2]
        left = at.astype(np.int64)
        p0, p1, p2, p3 = (line[left + k].astype(np.float64) for k in (-1, 0, 1, 2))
        f = at - left
        out = p1 + 0.5 * f * (p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0)))
        following = float(at[-1] + 1.0 / factor) if len(at) else self._position
        kept = max(0, min(int(following), len(line)) - 1)
        self._bent, self._position = line[kept:].copy(), following - kept
        return out.astype(np.float32)


def to_float(data: npt.NDArray[Any]) -> Float32:
    """Samples of any type used by decoders and sound cards, as float32 with full scale 1."""
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(data.dtype, np.integer):
        return (data / -float(np.iinfo(data.dtype).min)).astype(np.float32)
    return data.astype(np.float32)


def _channels(frame: Any) -> Float32:
    """One decoded frame: shape (channels, n), full scale 1, finite."""
    data = frame.to_ndarray()
    data = data if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels).T
    finite: Float32 = np.nan_to_num(to_float(data), nan=0.0, posinf=0.0, neginf=0.0, copy=False)
    return finite
