"""Voice activity detection."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from mien.errors import AssetError
from mien.messages import Bool, Float32

FRAME, CONTEXT = 512, 64  # samples at 16 kHz per call of the network: new, and repeated from the call before
# Below the network's default 0.5 / 0.35, which misses a distant voice in a noisy room entirely. On clean speech this
# changes one row in a hundred, and noise and tones stay silent (tests/stream/modalities/test_audio.py).
ON, OFF = 0.4, 0.25
HANGOVER = 16  # rows, 320 ms: a stop consonant or a short breath does not split a sentence


class VoiceActivity:
    """Streaming Silero VAD: probability of speech per 512 samples, keeping the network's state between calls."""

    def __init__(self) -> None:
        import onnxruntime  # here, not above: this module's constants are also used where no network runs

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(_path(), options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def __call__(self, frame: Float32) -> float:
        """Probability of speech in the next 512 samples."""
        batch = np.concatenate([self._context, frame])[None]
        probability, self._h, self._c = self._session.run(None, {"input": batch, "h": self._h, "c": self._c})
        self._context = frame[-CONTEXT:].copy()
        return float(probability.reshape(-1)[0])


def _path() -> str:
    spec = importlib.util.find_spec("faster_whisper")  # not imported: that would load CTranslate2 as well
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "assets" / "silero_vad_v6.onnx"
        if path.is_file():
            return str(path)
    raise AssetError("the voice activity model of faster-whisper is missing; install faster-whisper again")


class Hangover:
    """Probabilities of speech to voice activity, row by row, with hysteresis.

    A voice starts at ON, lasts while the probability stays above OFF, and for HANGOVER rows after that.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._speaking = False
        self._left = 0

    def __call__(self, probabilities: Float32) -> Bool:
        """Shape (n,) to shape (n,)."""
        active = np.empty(len(probabilities), np.bool_)
        for index, probability in enumerate(probabilities):
            if probability >= ON or (self._speaking and probability >= OFF):
                self._speaking, self._left, active[index] = True, HANGOVER, True
            else:
                active[index] = self._left > 0
                self._left = max(0, self._left - 1)
                self._speaking = self._left > 0
        return active
