"""The LSTM converter on its own: every size gives torch's numbers, and what it cannot reproduce it does not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mien.engines.base import Network, Precision
from mien.engines.tensorrt import conversion, lstm
from mien.engines.torch_eager import build_module, run_module
from tests.engines.tensorrt.conftest import compile_form
from tests.engines.tensorrt.test_conversion import run_definition


class Recurrence(nn.Module):
    """An LSTM, its initial states and what is read of it as the test wants them."""

    start: Tensor | None

    def __init__(self, start: float | None = None, final: bool = False, **options: Any) -> None:
        super().__init__()
        options = {"batch_first": True, "bidirectional": True} | options
        self.lstm = nn.LSTM(5, 6, **options)
        self.final = final
        directions = self.lstm.num_layers * (2 if self.lstm.bidirectional else 1)
        self.register_buffer("start", None if start is None else torch.full((directions, 1, 6), start))

    def forward(self, x: Tensor) -> Tensor:
        states = None if self.start is None else (self.start, self.start)
        sequence: Tensor
        h: Tensor
        sequence, (h, _) = self.lstm(x, states)
        return h if self.final else sequence


def make(steps: int = 7, dynamic: bool = False, **options: Any) -> Network:
    def build() -> nn.Module:
        torch.manual_seed(1)
        return Recurrence(**options)

    x = np.random.default_rng(0).standard_normal((1, steps, 5)).astype(np.float32)
    axes = {"x": {0: "batch"}, "y": {0: "batch"}} if dynamic else {}
    return Network("recurrence", "1", build, {"x": x}, ("y",), axes)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (3, 3), (None, 1), (None, 4)])
def test_equals_torch(steps: int, batch: int | None, rows: int) -> None:
    network = make(steps, dynamic=batch is None)
    x = np.random.default_rng(2).standard_normal((rows, steps, 5)).astype(np.float32)
    want = run_module(build_module(network), network, {"x": x})["y"]
    got = run_definition(compile_form(network, "fp32", batch), {"x": x})["y"]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16"])
def test_half(precision: Precision) -> None:
    network = make()
    want = run_module(build_module(network), network, network.example)["y"]
    got = run_definition(compile_form(network, precision, 1), network.example)["y"]
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "convertible"),
    [
        ({}, True),
        ({"start": 0.0}, True),
        ({"start": 0.5}, False),
        ({"final": True}, False),
        ({"num_layers": 2}, False),
        ({"bidirectional": False}, False),
        ({"bias": False}, False),
    ],
)
def test_converts_only_what_it_reproduces(options: dict[str, Any], convertible: bool) -> None:
    graph = conversion.lower(conversion.export(make(**options), "fp32", 1))
    (node,) = (node for node in graph.graph.nodes if node.target is torch.ops.aten.lstm.input)
    assert lstm.is_convertible(node) is convertible
    assert conversion.partition(graph)[0].is_whole is convertible
