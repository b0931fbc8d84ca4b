"""Timing of the voice encoder, the same for training clips and for a live microphone. Lightweight: no torch.

Audio is cut into blocks. When one is complete, the encoder (`mien.models.voice.whisper`) gets the last two seconds
and returns the state of a block near their end. Blocks are counted from a stream's first sample, so that a recording
gives the same states however it is chunked.
"""

from __future__ import annotations

import numpy as np

from mien.messages import Float32

SAMPLE_RATE = 16_000
FRAME = 320  # samples per encoder step, 20 ms
BLOCK_FRAMES = 10  # described by one state
LATER_FRAMES = 10  # of context after the block
WINDOW_FRAMES = 100
BLOCK, WINDOW = BLOCK_FRAMES * FRAME, WINDOW_FRAMES * FRAME  # samples
VOICE_DIM = 384
ENCODER_VERSION = 2  # of this file and of `mien.models.voice.whisper`


def mel_filters(bands: int, n_fft: int) -> Float32:
    """Slaney's mel filter bank with area normalisation (Auditory Toolbox, 1998): shape (bands, n_fft // 2 + 1).

    Equal to `librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=bands)`; a test compares the two. Reimplemented because
    loading librosa 0.11 costs 140 MB and 0.9 s of CPU in the audio worker.
    """
    log_step = np.log(6.4) / 27.0
    top = 15.0 + np.log(SAMPLE_RATE / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, top, bands + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(log_step * (mels - 15.0)))
    bins = np.arange(n_fft // 2 + 1) * SAMPLE_RATE / n_fft
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    filters: Float32 = (triangles * 2.0 / (edges[2:] - edges[:-2])[:, None]).astype(np.float32)
    return filters
