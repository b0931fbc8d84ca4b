"""Queue of sound for the recogniser: cut into steps, and bounded to a few seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from mien.messages import Float32
from mien.stream.sources.source import NS_PER_SAMPLE, SAMPLE_RATE, Chunk


class Backlog:
    """Chunks of any length in, steps of recognition out, as chunks too.

    Steps end at multiples of `step_ms` of sound since the last gap: they do not depend on how sound is chunked, nor,
    without a bound, on how fast they are taken.

    Args:
        bound_s: if more than this is queued, all but the newest chunk is skipped, and `take` returns everything
            queued as one step; None: nothing is ever skipped, and steps are taken one by one.

    Attributes:
        skipped_s: seconds of sound that were skipped since the start.
    """

    def __init__(self, step_ms: int, bound_s: float | None) -> None:
        self._step = step_ms * SAMPLE_RATE // 1000
        self._bound_s = bound_s
        self._chunks: deque[Chunk] = deque()
        self._position = 0  # samples taken since the last gap
        self.skipped_s = 0.0

    @property
    def waiting_s(self) -> float:
        return sum(len(chunk.samples) for chunk in self._chunks) / SAMPLE_RATE

    def push(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        waiting_s = self.waiting_s
        if self._bound_s is not None and waiting_s > self._bound_s:
            self.skipped_s += waiting_s - len(chunk.samples) / SAMPLE_RATE
            self._chunks.clear()
            self._chunks.append(replace(chunk, continuous=False))

    def take(self, rest: bool = False) -> Chunk | None:
        """The next step, None if it is not complete yet.

        Args:
            rest: take what there is, complete or not, at the end of the stream.
        """
        if not self._chunks:
            return None
        position = self._position if self._chunks[0].continuous else 0
        available, hole = self._available()
        if self._bound_s is None:
            size = self._step - position % self._step
        else:
            size = max(0, (position + available) // self._step * self._step - position)
        if size == 0 or size > available or (hole and self._bound_s is not None):
            if not (hole or rest):
                return None
            size = available
        self._position = position + size
        return self._cut(size)

    def _available(self) -> tuple[int, bool]:
        """Samples before the next gap, and whether there is one."""
        count = 0
        for index, chunk in enumerate(self._chunks):
            if index and not chunk.continuous:
                return count, True
            count += len(chunk.samples)
        return count, False

    def _cut(self, size: int) -> Chunk:
        parts: list[Float32] = []
        continuous = self._chunks[0].continuous
        while size > 0:
            chunk = self._chunks.popleft()
            part = chunk.samples[:size]
            parts.append(part)
            size -= len(part)
            t_end_ns = chunk.t_start_ns + len(part) * NS_PER_SAMPLE
            if len(part) < len(chunk.samples):
                left = replace(chunk, samples=chunk.samples[len(part) :], t_start_ns=t_end_ns, continuous=True)
                self._chunks.appendleft(left)
        samples = np.concatenate(parts)
        return Chunk(samples, t_end_ns - len(samples) * NS_PER_SAMPLE, chunk.read_ns, continuous)
