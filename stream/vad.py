"""Voice activity: Silero VAD v6, fed as the sound comes. The audio and the text worker each hold one of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort

from mien.errors import AssetError
from mien.messages import Float32

FRAME_SAMPLES = 512  # at 16 kHz, 32 ms: what the network was trained on
_CONTEXT_SAMPLES = 64  # of the frame before, put in front of every frame
_STATE_SHAPE = (1, 1, 128)


class VoiceActivity:
    """Probability of voice per frame of 32 ms, the same for any chunking of the sound.

    Raises:
        AssetError: faster-whisper, whose package carries the network's file, is not installed.
    """

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(vad_file()), sess_options=options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        """Forget what was heard: the next sample begins a frame. To be called where sound is missing."""
        self._hidden = np.zeros(_STATE_SHAPE, np.float32)
        self._cell = np.zeros(_STATE_SHAPE, np.float32)
        # The end of the frame before, then samples that do not fill a frame yet.
        self._held = np.zeros(_CONTEXT_SAMPLES, np.float32)

    def feed(self, samples: Float32) -> Float32:
        """Probabilities (n,) of the frames that `samples` (any number, mono, 16 kHz) completed; n may be 0."""
        held = np.concatenate([self._held, samples])
        count = (len(held) - _CONTEXT_SAMPLES) // FRAME_SAMPLES
        self._held = held[count * FRAME_SAMPLES :]
        if count == 0:
            return np.zeros(0, np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(held, _CONTEXT_SAMPLES + FRAME_SAMPLES)
        frames = np.ascontiguousarray(frames[::FRAME_SAMPLES][:count])  # shape (n, 576)
        probabilities, self._hidden, self._cell = self._session.run(
            None, {"input": frames, "h": self._hidden, "c": self._cell}
        )
        return np.asarray(probabilities, np.float32).reshape(-1)


def vad_file() -> Path:
    """The network's file, inside the faster-whisper package.

    Raises:
        AssetError: it is not there.
    """
    package = find_spec("faster_whisper")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "assets" / "silero_vad_v6.onnx"
        if path.is_file():
            return path
    raise AssetError("the voice detector comes with faster-whisper; install `mien[live]`")
