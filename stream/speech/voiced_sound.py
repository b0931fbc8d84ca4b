"""The recogniser's sound buffer, with voice activity.

Positions are seconds since the start of the stream. The sound is cut only at frame boundaries of the voice detector.
"""

from __future__ import annotations

import numpy as np

from mien.messages import Float32
from mien.stream.speech.voice_activity import FRAME, OFF, ON, VoiceActivity
from mien.stream.speech.whisper import SAMPLE_RATE

UNVOICED = 0.25  # there is no speech where the voice detector stays below this
MARGIN_S = 0.2  # possible error in the time of a word
FRAME_S = FRAME / SAMPLE_RATE


class VoicedSound:
    """A buffer appended to at its end and cut at its beginning.

    Attributes:
        samples: (n,) in the buffer, mono, 16 kHz.
        voiced_until_s: end of the last voiced frame.
    """

    def __init__(self, detector: VoiceActivity) -> None:
        self._detector = detector
        self.clear()

    def clear(self) -> None:
        """Restart at 0 s."""
        self._detector.reset()
        self.samples = np.zeros(0, np.float32)
        self.voiced_until_s = 0.0
        self._begin = 0  # first sample in the buffer, a multiple of FRAME
        self._probabilities = np.zeros(0, np.float32)  # of voice, per frame
        self._active = np.zeros(0, np.bool_)

    @property
    def begin_s(self) -> float:
        return self._begin / SAMPLE_RATE

    @property
    def end_s(self) -> float:
        return (self._begin + len(self.samples)) / SAMPLE_RATE

    @property
    def silence_s(self) -> float:
        """Seconds since the last voice."""
        return self.end_s - self.voiced_until_s

    def append(self, samples: Float32) -> None:
        self.samples = np.concatenate([self.samples, samples])
        frames = range(len(self._probabilities), len(self.samples) // FRAME)
        fresh = [self._detector(self.samples[i * FRAME : (i + 1) * FRAME]) for i in frames]
        active = bool(self._active[-1]) if len(self._active) else False
        for index, probability in zip(frames, fresh, strict=True):
            active = probability >= (OFF if active else ON)
            self._active = np.append(self._active, active)
            if active:
                self.voiced_until_s = (self._begin + (index + 1) * FRAME) / SAMPLE_RATE
        self._probabilities = np.append(self._probabilities, np.array(fresh, np.float32))

    def since(self, at_s: float) -> tuple[Float32, float]:
        """The samples from the frame at `at_s` on, and where it begins."""
        frame = self._frame(at_s)
        return self.samples[frame * FRAME :], (self._begin + frame * FRAME) / SAMPLE_RATE

    def voiced_frames(self, since_s: float) -> int:
        """Number of voiced frames of 32 ms, from `since_s` on."""
        return int(self._active[self._frame(since_s) :].sum())

    def voiced_s(self, start_s: float, end_s: float) -> float:
        """Seconds of a span during which there may be a voice."""
        voiced = self._probabilities[self._frame(start_s) : self._frame(end_s) + 1] >= UNVOICED
        return min(float(voiced.sum()) * FRAME_S, max(end_s - start_s, 0.0))

    def voiced_span(self, start_s: float, end_s: float) -> tuple[float, float] | None:
        """A word's span without surrounding silence: attention moves on only when the next word begins.

        None if there is no voice nearby.
        """
        first, last = self._frame(start_s), self._frame(end_s)
        voiced = np.flatnonzero(self._probabilities[first : last + 1] >= UNVOICED)
        if len(voiced):
            begin, end = first + int(voiced[0]), first + int(voiced[-1]) + 1
            start_s = max(start_s, (self._begin + begin * FRAME) / SAMPLE_RATE)
            return start_s, max(start_s, min(end_s, (self._begin + end * FRAME) / SAMPLE_RATE))
        first, last = self._frame(start_s - MARGIN_S), self._frame(end_s + MARGIN_S)
        near = self._probabilities[first : last + 1] >= UNVOICED
        return (start_s, end_s) if near.any() else None

    def pause_after(self, at_s: float, within_s: float) -> float | None:
        """The middle of the first pause that begins between `at_s` and `within_s` later; None if there is none."""
        first, last = self._frame(at_s), self._frame(at_s + within_s)
        silent = self._probabilities < UNVOICED
        for index in range(first, min(last + 1, len(silent) - 1)):
            if silent[index] and silent[index + 1]:
                until = index
                while until < len(silent) and silent[until]:
                    until += 1
                return (self._begin + (index + until) * FRAME / 2) / SAMPLE_RATE
        return None

    def cut(self, at_s: float) -> None:
        """Drop the sound before the frame at `at_s`."""
        frames = min(self._frame(at_s), len(self._probabilities))
        self.samples = self.samples[frames * FRAME :]
        self._probabilities = self._probabilities[frames:]
        self._active = self._active[frames:]
        self._begin += frames * FRAME

    def _frame(self, at_s: float) -> int:
        return max(0, (round(at_s * SAMPLE_RATE) - self._begin) // FRAME)
