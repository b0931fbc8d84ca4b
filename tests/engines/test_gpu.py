"""The whole CM-MSF on an NVIDIA GPU: `make test-gpu`. Skipped, visibly, without one."""

from __future__ import annotations

import logging
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from mien.engines.base import MAX_BATCH, Array, Engine, Network, Precision
from mien.engines.cache import Cache, identify
from mien.engines.cmmsf import whole_network
from mien.engines.golden import golden_inputs, tolerance
from mien.engines.selection import find_backend, open_backend, open_engine
from mien.engines.torch_eager import backend as torch_eager
from mien.engines.torch_eager import build_module
from mien.errors import EngineError
from mien.models.checkpoint import load_checkpoint
from mien.stream.bench.measurement import rounds
from tests.engines.networks import usable_pair

if TYPE_CHECKING:
    from mien.engines.tensorrt.engine import Ports

pytestmark = pytest.mark.gpu
# torch-cuda is the module as it is, whose LSTMs are cuDNN's.
PAIRS = [
    (name, precision) for name in ("tensorrt", "onnx-cuda", "torch-cuda") for precision in find_backend(name).precisions
]


@pytest.fixture(scope="module")
def network() -> Network:
    return whole_network(load_checkpoint())


@pytest.fixture(scope="module")
def reference(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return torch_eager.load(network, "fp32", tmp_path_factory.mktemp("reference"), 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled forms, shared by the tests: building one takes a while."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, Precision]:
    return usable_pair(request)


@pytest.fixture
def _tensorrt() -> None:
    missing = find_backend("tensorrt").missing()
    if missing:
        pytest.skip(missing)


def opened(pair: tuple[str, Precision], network: Network, store: Path) -> Engine:
    return open_backend(network, find_backend(pair[0]), pair[1], 1, Cache(store))


def batch_of(network: Network, rows: int, seed: int = 0) -> dict[str, Array]:
    """Windows that differ from each other; in every third one a modality is missing."""
    random = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for place, (name, example) in enumerate(network.example.items()):
        array = np.repeat(example[:1], rows, 0)
        if array.ndim == 2:
            array = (random.random(array.shape) < 0.7).astype(np.float32)
            array[place // 2 :: 3] = 0
        else:
            array = array + random.standard_normal(array.shape) * example.std((0, 1), keepdims=True)
        inputs[name] = array.astype(np.float32)
    return inputs


def test_golden_inputs_match_the_reference(
    pair: tuple[str, Precision], network: Network, reference: Engine, store: Path
) -> None:
    engine = opened(pair, network, store)
    cases = golden_inputs(network)
    outputs = [reference.infer(case) for case in cases]
    for case, want in zip(cases, outputs, strict=True):
        got = engine.infer(case)
        for output, expected in want.items():
            allowed = tolerance([one[output] for one in outputs], pair[1])
            assert float(np.abs(got[output] - expected).max()) <= allowed, output


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 17, 32])
def test_every_batch_size_matches_the_reference(
    pair: tuple[str, Precision], network: Network, reference: Engine, store: Path, rows: int
) -> None:
    engine = opened(pair, network, store)
    population = reference.infer(batch_of(network, 32, 9))
    for seed in range(2):  # the second one finds buffers, and perhaps a graph, of the first
        inputs = batch_of(network, rows, seed)
        got, want = engine.infer(inputs), reference.infer(inputs)
        for output, expected in want.items():
            assert got[output].shape == expected.shape
            assert float(np.abs(got[output] - expected).max()) <= tolerance([population[output]], pair[1]), output


def test_compiled_form_is_loaded_again(
    pair: tuple[str, Precision], network: Network, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not find_backend(pair[0]).cached:
        pytest.skip("nothing is compiled")
    first = opened(pair, network, store).infer(network.example)

    def build() -> NoReturn:
        raise AssertionError("compiled again although it was in the cache")

    unbuildable = Network(network.name, network.version, build, network.example, network.outputs, network.dynamic)
    began_s = time.perf_counter()
    second = opened(pair, unbuildable, store).infer(network.example)
    for output, array in first.items():
        np.testing.assert_allclose(second[output], array, atol=1e-6)
    with capsys.disabled():
        print(f"\n{'-'.join(pair)} opened again in {time.perf_counter() - began_s:.2f} s")


@pytest.mark.usefixtures("_tensorrt")
def test_relevant_changes_make_another_entry(network: Network) -> None:
    import torch

    backend = find_backend("tensorrt")
    identity = identify(network, backend, "fp32")
    capability = ".".join(str(part) for part in torch.cuda.get_device_capability())
    assert identity["version gpu"] == torch.cuda.get_device_name()
    assert identity["version sm"] == capability
    assert {"version cuda", "version driver", "version converter", "version torch"} <= identity.keys()
    assert identify(network, backend, "fp16") != identity
    assert identify(whole_network(load_checkpoint(), 8), backend, "fp32") != identity


@pytest.mark.usefixtures("_tensorrt")
@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_unusable_engine_is_rebuilt(
    network: Network, reference: Engine, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    from mien.engines.tensorrt.engine import PLAN

    opened(("tensorrt", "fp32"), network, tmp_path)
    (plan,) = tmp_path.glob(f"*/{PLAN}")
    plan.write_bytes(plan.read_bytes()[:-100] if damage == "cut" else bytes(1000))
    got = opened(("tensorrt", "fp32"), network, tmp_path).infer(network.example)
    assert "compiling it anew" in caplog.text
    for output, array in reference.infer(network.example).items():
        np.testing.assert_allclose(got[output], array, atol=1e-4)


@pytest.fixture
def plan(network: Network, store: Path, _tensorrt: None) -> tuple[bytes, Ports]:
    """A TensorRT engine's bytes, and its ports."""
    import msgspec

    from mien.engines.tensorrt.engine import PLAN, PORTS, Ports

    opened(("tensorrt", "fp32"), network, store)
    folder = next(
        path.parent for path in store.glob(f"*/{PLAN}") if '"fp32"' in (path.parent / "manifest.json").read_text()
    )
    return (folder / PLAN).read_bytes(), msgspec.json.decode((folder / PORTS).read_bytes(), type=Ports)


@pytest.mark.parametrize("how", ["as it comes", "without graphs", "capture fails"])
def test_outputs_are_equal_with_and_without_a_graph(
    network: Network,
    reference: Engine,
    plan: tuple[bytes, Ports],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    from mien.engines.tensorrt.engine import open_plan

    if how == "capture fails":

        class Uncapturable(torch.cuda.graph):
            def __enter__(self) -> None:
                raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "graph", Uncapturable)
    engine = open_plan("tensorrt", network, *plan, graphs=how != "without graphs")
    for seed in range(3):
        inputs = batch_of(network, 4, seed)
        for output, array in reference.infer(inputs).items():
            np.testing.assert_allclose(engine.infer(inputs)[output], array, atol=1e-4)
    if how == "as it comes":
        with capsys.disabled():
            print(f"\nTensorRT's loops {'are' if engine.uses_graph else 'are not'} captured as a CUDA graph")
    else:
        assert engine.uses_graph is False


@pytest.mark.parametrize("how", ["as it comes", "without graphs", "capture fails"])
def test_torch_outputs_are_equal_with_and_without_a_graph(
    network: Network, reference: Engine, monkeypatch: pytest.MonkeyPatch, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from mien.engines.torch_eager import CAPTURE_AFTER, cuda_engine

    missing = find_backend("torch-cuda").missing()
    if missing:
        pytest.skip(missing)
    if how == "capture fails":

        class Uncapturable(torch.cuda.graph):
            def __enter__(self) -> None:
                raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "graph", Uncapturable)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module = build_module(network).to("cuda")
    engine = cuda_engine("torch-cuda", network, module, graphs=how != "without graphs")
    used = []
    for seed in range(2 * CAPTURE_AFTER):
        for rows in (1, 4):  # one after the other: each has buffers and a graph of its own
            inputs = batch_of(network, rows, seed)
            got = engine.infer(inputs)
            for output, array in reference.infer(inputs).items():
                np.testing.assert_allclose(got[output], array, atol=1e-4)
            used.append(engine.uses_graph)
    assert used == [how == "as it comes" and index >= 2 * CAPTURE_AFTER for index in range(len(used))]
    assert ("launched one by one" in caplog.text) == (how == "capture fails")


def test_data_uses_pinned_memory_and_its_own_stream(network: Network, plan: tuple[bytes, Ports]) -> None:
    import torch

    from mien.engines.tensorrt.engine import open_plan

    engine = open_plan("tensorrt", network, *plan)
    engine.infer(network.example)
    assert engine.stream is not None
    assert engine.stream.cuda_stream != torch.cuda.default_stream().cuda_stream
    (binding,) = engine._bindings.values()
    assert all(tensor.is_pinned() for tensor in binding._host_outputs)


def test_batch_beyond_the_profile_is_refused(network: Network, plan: tuple[bytes, Ports]) -> None:
    from mien.engines.tensorrt.engine import open_plan

    engine = open_plan("tensorrt", network, *plan)
    with pytest.raises(EngineError, match="outside"):
        engine.infer(batch_of(network, MAX_BATCH + 1))
    assert engine.infer(network.example)


def test_full_gpu_is_replaced(network: Network, reference: Engine, store: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU")
    engine = open_engine(network, "torch-cuda", cache=store)
    assert engine.id == "torch-cuda-fp32"
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        inputs = batch_of(network, 32)
        got = engine.infer(inputs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.id == "onnx-fp32"
    assert "out of memory" in engine.reason
    for output, array in reference.infer(inputs).items():
        np.testing.assert_allclose(got[output], array, atol=1e-4)


def test_latency_comparison(
    network: Network, reference: Engine, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No verdict: TensorRT's loops may be slower than cuDNN's LSTM, and `auto` takes whichever is faster."""
    engines = {"torch-fp32": reference}
    for name, precision in PAIRS:
        if find_backend(name).missing() is None:
            engines[f"{name}-{precision}"] = opened((name, precision), network, store)
    if len(engines) == 1:
        pytest.skip("there is no engine for a GPU")
    lines = []
    for rows in (1, 8):
        inputs, durations_ms = batch_of(network, rows), {id: list[float]() for id in engines}
        for order in islice(rounds(engines), 120):
            for id in order:
                began_s = time.perf_counter()
                engines[id].infer(inputs)
                durations_ms[id].append((time.perf_counter() - began_s) * 1e3)
        for id, values in durations_ms.items():
            p50, p99 = np.percentile(values[20:], (50, 99))
            lines.append(f"batch {rows}  {id:<16} p50 {p50:7.2f} ms  p99 {p99:7.2f} ms")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
