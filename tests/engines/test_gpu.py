"""The whole CM-MSF on an NVIDIA GPU: `make test-gpu`. Skipped, visibly, where there is none."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mien.engines.base import Precision
from mien.engines.cache import Cache
from mien.engines.cmmsf import whole_network
from mien.engines.golden import golden_inputs, tolerance
from mien.engines.selection import find_backend, open_backend
from mien.engines.torch_eager import backend as torch_eager
from mien.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu
PAIRS = [
    (name, precision) for name in ("tensorrt", "onnx-cuda", "torch-cuda") for precision in find_backend(name).precisions
]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def pair(request: pytest.FixtureRequest) -> tuple[str, Precision]:
    name, precision = request.param
    missing = find_backend(name).missing()
    if missing:
        pytest.skip(missing)
    return name, precision


def test_agrees_with_the_reference_is_loaded_again_and_is_timed(
    pair: tuple[str, Precision], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, precision = pair
    network = whole_network(load_checkpoint())
    reference = torch_eager.load(torch_eager.compile(network, "fp32", tmp_path), 1)
    engine = open_backend(network, find_backend(name), precision, 1, Cache(tmp_path))
    cases = golden_inputs(network)
    wanted = [reference.infer(case) for case in cases]
    for case, want in zip(cases, wanted, strict=True):
        got = engine.infer(case)
        for output, expected in want.items():
            allowed = tolerance([one[output] for one in wanted], precision)
            assert float(np.abs(got[output] - expected).max()) <= allowed, output
    began_s = time.perf_counter()
    again = open_backend(network, find_backend(name), precision, 1, Cache(tmp_path))
    reopened_s = time.perf_counter() - began_s
    first, second = (e.infer(network.example) for e in (engine, again))
    assert all(np.allclose(first[output], second[output], atol=1e-6) for output in first)
    times_ms: dict[str, list[float]] = {engine.id: [], "reference": []}
    for _ in range(100):  # in turns, so that the machine's moods meet both
        for label, one in ((engine.id, engine), ("reference", reference)):
            began_s = time.perf_counter()
            one.infer(network.example)
            times_ms[label].append((time.perf_counter() - began_s) * 1e3)
    with capsys.disabled():
        medians = ", ".join(f"{label} {np.median(times[10:]):.2f} ms" for label, times in times_ms.items())
        print(f"\n{medians}; opened again in {reopened_s:.2f} s")
