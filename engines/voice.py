"""The voice encoder as the engine layer sees it: the lower half of Whisper's audio encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Network
from mien.errors import AssetError
from mien.models.voice.encoder import ENCODER_VERSION, SAMPLE_RATE, WINDOW

if TYPE_CHECKING:
    from torch import nn


def voice_network(folder: Path | str) -> Network:
    """`samples`, (1, WINDOW) float32 mono 16 kHz -> `state` (1, VOICE_DIM).

    Args:
        folder: of Whisper tiny.en ("whisper-tiny.en" among the assets).

    Raises:
        AssetError: the folder lacks the model.
    """
    folder = Path(folder)

    def build() -> nn.Module:
        from mien.models.voice.whisper import load_voice

        return load_voice(folder)

    weights = folder / "model.bin"
    if not weights.is_file():
        raise AssetError(f"{folder} holds no model.bin; fetch Whisper tiny.en with `mien assets`")
    base = hashlib.sha256((folder / "config.json").read_bytes() + str(weights.stat().st_size).encode()).hexdigest()
    # A chirp with overtones and a varying volume: something in every band, loud and faint.
    t = np.arange(WINDOW) / SAMPLE_RATE
    phase = 2 * np.pi * (120.0 * t + 40.0 * t * t)
    sound = np.sum([np.sin(k * phase) / k for k in range(1, 30)], axis=0) * (0.1 + 0.1 * np.sin(2 * np.pi * 3.0 * t))
    return Network(
        name="voice",
        version=f"{ENCODER_VERSION}-{base[:8]}",
        build=build,
        example={"samples": sound[None].astype(np.float32)},
        outputs=("state",),
        origin=("mien.engines.voice:voice_network", {"folder": str(folder)}),
    )
