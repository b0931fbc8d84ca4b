"""Streaming states of the voice encoder, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.engines.selection import open_engine
from mien.engines.voice import voice_network
from mien.messages import Float32, Int64
from mien.models.voice.encoder import BLOCK, VOICE_DIM, WINDOW


class VoiceStates:
    """Streaming states of the speech recogniser's encoder.

    State number j encodes the sound before sample j x BLOCK, with silence before the first sample.

    Args:
        folder: of Whisper tiny.en ("whisper-tiny.en" among the assets).

    Raises:
        AssetError: it is not in the folder.
        EngineError: it cannot be run.
    """

    def __init__(self, folder: Path) -> None:
        # One engine everywhere: rows must not depend on what the fusion model runs on.
        self._engine = open_engine(voice_network(folder), "onnx", "fp32", threads=1)
        self._silence = self._state(np.zeros(WINDOW, np.float32))
        self.reset()

    def reset(self) -> None:
        """Begin a new stream: the next sample is sample 0."""
        self._sound = np.zeros(WINDOW, np.float32)  # the window before the next block, and what there is of that block
        self._states = [self._silence]
        self._first = 0  # number of the first of them

    def push(self, samples: Float32) -> None:
        """Add samples, shape (n,), mono 16 kHz, finite."""
        self._sound = np.concatenate([self._sound, samples])
        begin = 0
        while len(self._sound) - begin >= WINDOW + BLOCK:
            begin += BLOCK
            self._states.append(self._state(self._sound[begin : begin + WINDOW]))
        self._sound = self._sound[begin:]

    def take(self, numbers: Int64) -> Float32:
        """States (n, VOICE_DIM) by their `numbers` (n,), which never decrease; earlier ones are dropped."""
        if not len(numbers):
            return np.zeros((0, VOICE_DIM), np.float32)
        index = numbers - self._first
        taken: Float32 = np.stack(self._states)[index]
        last = int(index[-1])
        self._states, self._first = self._states[last:], self._first + last
        return taken

    def _state(self, window: Float32) -> Float32:
        state: Float32 = self._engine.infer({"samples": window[None]})["state"][0]
        return state
