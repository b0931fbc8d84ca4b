"""The voice encoder: the lower half of Whisper's audio encoder, trained on far more voices than any emotion corpus has.

Its middle layers encode how something is said; its last ones encode the words and drop the rest. A linear classifier
on a clip's mean state, on unseen speakers (four folds), has a UAR of .53, .69, .74, .72 and .68 on RAVDESS and of
.69, .81, .85, .79 and .77 on EmoDB after 0, 1, 2, 3 and 4 layers. So it is cut after the second, which also halves
the work.

Whisper: Radford et al., ICML 2023. Weights: tiny.en in CTranslate2's format, the file that the recogniser uses.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.errors import AssetError
from mien.models.voice.encoder import BLOCK_FRAMES, LATER_FRAMES, VOICE_DIM, WINDOW_FRAMES, mel_filters

LAYERS = 2
HEADS = 6
BANDS, N_FFT, HOP = 80, 400, 160  # of Whisper's spectrogram
CT2_VERSION = 6  # of the file format
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_FLOOR, _RANGE = 1e-10, 8.0  # power, and decades below the maximum that are kept
_LOUDEST = 1.0  # value of the loudest bin: about that of Whisper's training speech


class LogMel(nn.Module):
    """Samples (B, n) to Whisper's log-mel spectrogram (B, 80, n / 160).

    The Fourier transform is a convolution, so that any engine can run it.
    """

    waves: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        t = np.arange(N_FFT)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * t / N_FFT)
        phase = 2 * np.pi * np.arange(N_FFT // 2 + 1)[:, None] * t / N_FFT
        waves = np.concatenate([np.cos(phase), np.sin(phase)]) * window
        self.register_buffer("waves", torch.tensor(waves[:, None], dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(BANDS, N_FFT)), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        half = N_FFT // 2
        # One frame fewer than the window holds, as in Whisper's training.
        parts = F.conv1d(F.pad(samples[:, None], (half, half - HOP)), self.waves, stride=HOP)
        real, imaginary = parts.chunk(2, 1)
        power = self.filters @ (real.square() + imaginary.square())
        log = torch.log10(power.clamp(min=_FLOOR))
        loudest = log.amax((1, 2), keepdim=True)
        # Relative to the window's maximum, so that the microphone's distance and gain cancel out.
        return torch.maximum(log - loudest, torch.full_like(loudest, -_RANGE)) / 4.0 + _LOUDEST


class VoiceLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.attended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.attention(self.attention_norm(x)).chunk(3, -1)
        )
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.attended((weights @ value).transpose(1, 2).flatten(-2))
        narrowed: Tensor = self.narrow(F.gelu(self.widen(self.perceptron_norm(x))))
        return x + narrowed


class VoiceEncoder(nn.Module):
    """The newest audio to the mean state of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrogram = LogMel()
        self.conv1 = nn.Conv1d(BANDS, VOICE_DIM, 3, padding=1)
        self.conv2 = nn.Conv1d(VOICE_DIM, VOICE_DIM, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(WINDOW_FRAMES, VOICE_DIM))
        self.layers = nn.ModuleList(VoiceLayer(VOICE_DIM) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(VOICE_DIM)  # the next layer's first norm

    def forward(self, samples: Tensor) -> Tensor:
        """Samples (B, WINDOW) mono 16 kHz -> (B, VOICE_DIM), the mean state of the block that it describes."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(self.spectrogram(samples))))).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        end = WINDOW_FRAMES - LATER_FRAMES
        states: Tensor = self.norm(x[:, end - BLOCK_FRAMES : end])
        return states.mean(1)


def load_voice(folder: Path) -> VoiceEncoder:
    """The voice encoder, from a folder of Whisper tiny.en ("whisper-tiny.en" among the assets).

    Raises:
        AssetError: the folder does not hold this model.
    """
    path = folder / "model.bin"
    try:
        stored = read_ctranslate2(path)
        encoder = VoiceEncoder()
        encoder.load_state_dict(
            {name: torch.from_numpy(stored[key].astype(np.float32)[rows]) for name, (key, rows) in _names().items()}
        )
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise AssetError(f"{path} does not hold Whisper tiny.en ({error}); fetch it with `mien assets`") from error
    return encoder.eval()


def _names() -> dict[str, tuple[str, slice]]:
    """Our names -> CTranslate2's, and which rows of the tensor."""
    whole = slice(None)
    names: dict[str, tuple[str, slice]] = {
        "positions": ("encoder/position_encodings/encodings", slice(0, WINDOW_FRAMES))
    }
    for leaf in ("weight", "bias"):
        names |= {f"conv{n}.{leaf}": (f"encoder/conv{n}/{leaf}", whole) for n in (1, 2)}
    for number in range(LAYERS):
        renamed = {
            "attention": "self_attention/linear_0", "attended": "self_attention/linear_1",
            "widen": "ffn/linear_0", "narrow": "ffn/linear_1",
        }  # fmt: skip
        for ours, part in renamed.items():
            for leaf in ("weight", "bias"):
                names[f"layers.{number}.{ours}.{leaf}"] = f"encoder/layer_{number}/{part}/{leaf}", whole
        for ours, part in {"attention_norm": "self_attention", "perceptron_norm": "ffn"}.items():
            for leaf, named in (("weight", "gamma"), ("bias", "beta")):
                key = f"encoder/layer_{number}/{part}/layer_norm/{named}"
                names[f"layers.{number}.{ours}.{leaf}"] = key, whole
    for leaf, named in (("weight", "gamma"), ("bias", "beta")):
        names[f"norm.{leaf}"] = f"encoder/layer_{LAYERS}/self_attention/layer_norm/{named}", whole
    return names


def read_ctranslate2(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a model in CTranslate2's binary format, by name; read-only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another format version.
    """
    content = memoryview(path.read_bytes())
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + kind, content, place)
        place += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal place
        size = number("H")  # its closing zero included
        value = bytes(content[place : place + size])
        place += size
        return value.rstrip(b"\0").decode()

    try:
        version = number("I")
        if version != CT2_VERSION:
            raise ValueError(f"version {version}, not {CT2_VERSION}")
        text()  # what kind of model it is
        number("I")  # and the revision of that
        tensors = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = np.dtype(_TYPES[number("B")]), number("I")
            if place + size > len(content):
                raise ValueError("it ends too early")
            tensors[name] = np.frombuffer(content[place : place + size], dtype).reshape(shape)
            place += size
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(f"not a complete file of CTranslate2: {error!r}") from error
    return tensors
