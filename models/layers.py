"""Layers that the encoders and the fusion share: pooling to the time grid, recurrence, convolution, attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn


def pool_to_slots(x: Tensor, mask: Tensor, slots: int, *, fixed: bool = False) -> tuple[Tensor, Tensor]:
    """Masked average of (B, T, d) over the steps of each of `slots` slots; a step across a border counts for both.

    Args:
        fixed: whether T is a constant of an exported graph, and with it what each step counts for.

    Returns the averages (B, slots, d), zero where nothing was observed, and the observed share of each slot.
    """
    share = slot_shares(int(x.shape[1]) if fixed else x.shape[1], slots, x.device).to(x)
    total, seen = share @ (x * mask[..., None]), mask @ share.T
    return total / seen.clamp(min=1e-6)[..., None], seen


def slot_shares(steps: int, slots: int, device: torch.device) -> Tensor:
    """(slots, steps): which part of a slot each step fills. Rows sum to 1."""
    # Integer arithmetic: a rounding error would make an unobserved slot look observed. Created on the device: a CUDA
    # graph cannot contain copies from elsewhere.
    step = torch.arange(steps, device=device) * slots
    slot = torch.arange(slots, device=device)[:, None] * steps
    overlap = torch.minimum(slot + steps, step + slots) - torch.maximum(slot, step)
    return overlap.clamp(min=0) / steps


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Sum in order: as over a stack of them, but with fewer operators."""
    return reduce(torch.add, terms)


class BiLSTM(nn.Module):
    """A bidirectional LSTM over (B, T, D) that returns (B, T, 2 x hidden)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lstm(x)[0]
        return output


class TimeConv(nn.Module):
    """A Conv1d along time over (B, T, D), the length kept."""

    def __init__(self, dim: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return output


class MaskedAttentionPool(nn.Module):
    """(..., S, d) and observed (..., S) -> (..., d): an average over the observed slots, weighted by attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)  # softmax ignores a bias

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        seen = (observed > 0).to(x.dtype)
        scores = self.score(torch.tanh(self.project(x)))[..., 0]
        # Attention over unobserved slots is exactly 0: exp underflows, and the product makes an empty window 0.
        weights = torch.softmax(scores - (1.0 - seen) * 1e4, -1) * seen
        return (weights[..., None] * x).sum(-2)


def log_sigmoid(x: Tensor) -> Tensor:
    """In operators that every engine supports."""
    return x.clamp(max=0.0) - torch.log(1.0 + torch.exp(-x.abs()))


def relative(logarithm: Tensor, present: Tensor) -> Tensor:
    """Weights (B, M), relative to the largest one present, from their logarithms; 0 where `present` is."""
    power = logarithm - (1.0 - present) * 1e4
    return torch.exp(power - power.amax(-1, keepdim=True)) * present
