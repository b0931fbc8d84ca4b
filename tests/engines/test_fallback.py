"""Any failure, on loading or in mid-stream, is reported and handled by a fallback, never by a wrong number."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mien.engines import selection
from mien.engines.base import Array, Engine, Network, Precision
from mien.engines.predictor import Predictor
from mien.engines.selection import choose_engine, find_backend, find_usable, open_engine
from mien.engines.torch_eager import TorchBackend, build_module, run_module
from mien.errors import EngineError
from mien.models.checkpoint import Checkpoint
from tests.engines.test_predictor import Stream, assert_close
from tests.windows import predict_anew

# torch raises the same classes for both the CUDA and the CPU allocator.
FULL: dict[str, Callable[[], object]] = {
    "gpu allocator": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")),
    "allocator": lambda: torch.empty(1 << 60, dtype=torch.uint8),
}


class SmallDevice(TorchBackend):
    """A device with memory for a number of calls: 0 fails on loading, more fails in mid-stream."""

    def __init__(self, calls: int, allocate: Callable[[], object]) -> None:
        super().__init__("torch-cuda", "cpu")
        self.calls, self.allocate = calls, allocate

    def load(self, network: Network, precision: Precision, folder: Path, threads: int) -> Engine:
        del folder, threads
        module = build_module(network)
        left = [self.calls]

        def allocate(*_: object) -> None:
            if left[0] <= 0:
                self.allocate()
            left[0] -= 1

        module.register_forward_pre_hook(allocate)
        engine = Engine(f"{self.name}-{precision}", network, partial(run_module, module, network))
        if self.calls == 0:
            engine.infer(network.example)  # as the golden check does
        return engine


def use(monkeypatch: pytest.MonkeyPatch, backend: TorchBackend) -> None:
    monkeypatch.setattr("mien.engines.torch_eager.cuda_backend", backend)


def reference(network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
    return open_engine(network, "torch").infer(inputs)


@pytest.mark.parametrize("allocate", FULL.values(), ids=FULL)
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_device_out_of_memory_is_replaced_at_once(
    network: Network,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    calls: int,
    allocate: Callable[[], object],
) -> None:
    use(monkeypatch, SmallDevice(calls, allocate))
    engine = open_engine(network, "torch-cuda", cache=cache)
    assert engine.id == ("onnx-fp32" if calls == 0 else "torch-cuda-fp32")
    want = reference(network, network.example)
    for _ in range(calls + 2):
        got = engine.infer(network.example)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, atol=1e-5)
    assert engine.id == "onnx-fp32"
    assert engine.reason.startswith("in place of torch-cuda-fp32: ")
    assert "memory" in engine.reason
    assert "engine torch-cuda-fp32 is not used" in caplog.text


def test_stream_continues_when_its_device_is_full(
    checkpoint: Checkpoint, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, SmallDevice(4, FULL["gpu allocator"]))
    predictor = Predictor(checkpoint, "torch-cuda", cache=compiled)
    steady = Predictor(checkpoint, "torch", cache=compiled)
    assert (predictor.id, predictor.trouble) == (f"{checkpoint.id}/torch-cuda-fp32", None)
    stream = Stream(8)
    models = []
    for _ in range(8):
        window = stream.next("vision", "audio", "text")
        outputs = predict_anew(predictor, window)
        assert_close(outputs, predict_anew(steady, window), 1e-4)
        models.append(predictor.id)
    assert models[0] == f"{checkpoint.id}/torch-cuda-fp32"
    assert models[-1] == predictor.id == f"{checkpoint.id}/onnx-fp32"
    assert predictor.trouble is not None
    assert "CUDA out of memory" in predictor.trouble == predictor.reason


def test_caller_errors_do_not_replace_the_engine(network: Network, cache: Path) -> None:
    engine = open_engine(network, "onnx", cache=cache)
    with pytest.raises(EngineError, match="needs input 'x'"):
        engine.infer({})
    assert engine.id == "onnx-fp32"
    assert engine.infer(network.example)


class Broken(nn.Module):
    """Fails on any engine: there is no result to return."""

    def forward(self, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("always")


def test_no_engine_left_is_an_error_that_names_them_all(network: Network, cache: Path) -> None:
    network = Network("small", "broken", Broken, network.example, network.outputs, network.dynamic)
    # Torch compiles nothing, so it fails only on inference.
    engine = open_engine(network, "onnx", cache=cache)
    with pytest.raises(EngineError, match=r"no engine can run network 'small': onnx-fp32: .*; torch-fp32: .*always"):
        engine.infer(network.example)


@pytest.fixture
def engine_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine whose file cannot be imported, as with a half-installed library."""
    (tmp_path / "broken_engine.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(selection.BACKENDS, "openvino", ("broken_engine", "backend"))
    yield "openvino"
    sys.modules.pop("broken_engine", None)


def test_engine_file_that_fails_to_import_is_skipped(network: Network, cache: Path, engine_file: str) -> None:
    with pytest.raises(EngineError, match=r"broken_engine cannot be loaded: ModuleNotFoundError.*not_there"):
        find_backend(engine_file)
    choice = choose_engine(network, cache=cache)
    assert choice.engine != engine_file
    assert "a_library_that_is_not_there" in choice.refused[engine_file]
    engine = open_engine(network, engine_file, cache=cache)
    assert engine.id == "onnx-fp32"
    assert "a_library_that_is_not_there" in engine.reason


def test_broken_library_is_skipped(network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: TorchBackend) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("mien.engines.openvino.OpenVinoBackend.missing", broken)
    with pytest.raises(EngineError, match="OSError: libcudart"):
        find_usable("openvino")
    assert "libcudart" in choose_engine(network, cache=cache).refused["openvino"]
