"""`auto` measures, remembers, and never picks an engine that deviates from the reference."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mien.engines.base import Network
from mien.engines.cache import Cache
from mien.engines.onnx import OnnxBackend
from mien.engines.selection import BACKENDS, Choice, choose_engine, find_backend, open_engine
from mien.engines.torch_eager import backend as torch_eager
from tests.engines.networks import make_network
from tests.engines.test_cache import WrongBackend


def test_auto_takes_the_fastest_measured(network: Network, cache: Path) -> None:
    choice = choose_engine(network, cache=cache)
    runnable = {name for name in BACKENDS if find_backend(name).missing() is None}
    assert {name.rsplit("-", 1)[0] for name in choice.medians_ms} == runnable
    assert set(choice.refused) == set(BACKENDS) - runnable
    assert all(f"{name} " in choice.reason for name in choice.medians_ms)
    engine = open_engine(network, cache=cache)
    assert engine.id == f"{choice.engine}-fp32"
    assert engine.reason == choice.reason


def test_choice_is_remembered_until_something_changes(network: Network, cache: Path) -> None:
    choose_engine(network, cache=cache)
    (path,) = cache.glob("*.choice.json")
    marked = Choice("torch", "fp32", "remembered", {}, {})
    path.write_bytes(msgspec.json.encode(marked))
    assert choose_engine(network, cache=cache) == marked
    assert choose_engine(make_network(version="2"), cache=cache).reason != "remembered"
    path.write_bytes(b"{damaged")
    assert choose_engine(network, cache=cache).reason != "remembered"


def test_auto_never_takes_wrong_outputs(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mien.engines.onnx.backend", WrongBackend("onnx", "CPUExecutionProvider"))
    choice = choose_engine(network, cache=cache)
    assert choice.engine != "onnx"
    assert "off the reference" in choice.refused["onnx-fp32"]
    assert "is not a candidate" in caplog.text
    want = torch_eager.load(network, "fp32", cache, 1).infer(network.example)
    got = open_engine(network, cache=cache).infer(network.example)
    np.testing.assert_allclose(got["sentiment"], want["sentiment"], atol=1e-5)


def test_engine_whose_library_is_broken_is_replaced(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that is installed but cannot start is detected on loading."""
    monkeypatch.setattr(OnnxBackend, "missing", lambda _: None)
    engine = open_engine(network, "onnx-cuda", cache=cache)
    if engine.id == "onnx-cuda-fp32":
        pytest.skip("this machine has CUDA")
    assert engine.id == "onnx-fp32"
    assert "onnx-cuda-fp32:" in engine.reason
    assert {entry["backend"] for entry in Cache(cache).entries()} == {"onnx"}
