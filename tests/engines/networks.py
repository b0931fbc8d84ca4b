"""Small networks with every kind of operator used in mien's models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mien.engines.base import Network, Precision
from mien.engines.selection import BACKENDS, find_backend
from mien.messages import ModalitySpec
from mien.models.voice.columns import ROW

# Every existing pair; those that cannot run here are skipped with the reason shown to users.
PAIRS = [(name, precision) for name in BACKENDS for precision in find_backend(name).precisions]

SPECS = (
    ModalitySpec("text", 24, 0, 20, snapshot=True, extractor="t/1"),
    ModalitySpec("audio", ROW, 50, 50, extractor="a/1"),  # with this many columns it is read as a voice
    ModalitySpec("vision", 14, 10, 20, extractor="v/1"),
)


class ConvBiLstm(nn.Module):
    """Conv1d and BiLSTM in parallel, a mask, attention pooling and two heads: a miniature CM-MSF."""

    def __init__(self, dim: int = 12, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, width, 3, padding=1)
        self.lstm = nn.LSTM(dim, width // 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * width)
        self.score = nn.Linear(2 * width, 1)
        self.head = nn.Linear(2 * width, 7)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x * mask[..., None]
        local = nn.functional.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        rows = self.norm(torch.cat([local, self.lstm(x)[0]], -1))
        scores = self.score(rows)[..., 0].masked_fill(mask == 0, -1e4)
        pooled = (rows * torch.softmax(scores, -1)[..., None]).sum(1) * mask.amax(1, keepdim=True)
        logits = self.head(pooled)
        return torch.tanh(logits[:, 0]), torch.softmax(logits, -1)


def make_network(version: str = "1", seed: int = 0, dynamic: bool = True) -> Network:
    """A network with seeded weights and examples."""

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return ConvBiLstm()

    random = np.random.default_rng(seed)
    mask = np.ones((1, 10), np.float32)
    mask[:, 7:] = 0
    return Network(
        name="small",
        version=version,
        build=build,
        example={"x": random.standard_normal((1, 10, 12)).astype(np.float32), "mask": mask},
        outputs=("sentiment", "emotions"),
        dynamic={name: {0: "batch"} for name in ("x", "mask", "sentiment", "emotions")} if dynamic else {},
    )


def usable_pair(request: pytest.FixtureRequest) -> tuple[str, Precision]:
    """The engine and precision of a fixture's parameter; skips with the reason if it cannot run here."""
    name, precision = request.param
    missing = find_backend(name).missing()
    if missing:
        pytest.skip(missing)
    return name, precision
