"""One suite for every engine that this machine can run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from mien.engines.base import Array, Engine, Network, Precision
from mien.engines.cache import Cache
from mien.engines.golden import golden_inputs, tolerance
from mien.engines.onnx import export_graph
from mien.engines.selection import find_backend, open_backend, open_engine
from mien.engines.torch_eager import backend as torch_eager
from mien.errors import EngineError
from tests.engines.networks import make_network


def open_pair(pair: tuple[str, Precision], network: Network, cache: Path) -> Engine:
    """The engine; skipped if its own golden check rejects the reduced precision, since it is never used then."""
    name, precision = pair
    try:
        return open_backend(network, find_backend(name), precision, 1, Cache(cache))
    except EngineError as error:
        if precision == "fp32":
            raise
        pytest.skip(str(error))


@pytest.fixture
def engine(pair: tuple[str, Precision], network: Network, cache: Path) -> Engine:
    return open_pair(pair, network, cache)


@pytest.fixture
def reference(network: Network) -> Engine:
    return torch_eager.load(network, "fp32", Path(), 1)


def batch(rows: int, seed: int = 3) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    mask = (random.random((rows, 10)) < 0.7).astype(np.float32)
    mask[:, 0] = 1
    return {"x": random.standard_normal((rows, 10, 12)).astype(np.float32), "mask": mask}


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_agrees_with_the_reference(
    engine: Engine, reference: Engine, network: Network, pair: tuple[str, Precision], rows: int
) -> None:
    inputs = batch(rows)
    got, want = engine.infer(inputs), reference.infer(inputs)
    assert got.keys() == want.keys() == set(network.outputs)
    for name in network.outputs:
        population = [reference.infer(batch(32))[name]]
        assert got[name].dtype == np.float32
        assert np.abs(got[name] - want[name]).max() <= tolerance(population, pair[1])


def test_batch_equals_single_windows(engine: Engine, pair: tuple[str, Precision]) -> None:
    inputs = batch(4)
    together = engine.infer(inputs)
    for row in range(4):
        alone = engine.infer({name: array[row : row + 1] for name, array in inputs.items()})
        for name, array in alone.items():
            np.testing.assert_allclose(array[0], together[name][row], atol=1e-5 if pair[1] == "fp32" else 5e-3)


def test_masked_values_change_nothing(engine: Engine) -> None:
    inputs = batch(2)
    noisy = {"x": np.where(inputs["mask"][..., None] == 0, np.float32(7), inputs["x"]), "mask": inputs["mask"]}
    for name, array in engine.infer(inputs).items():
        np.testing.assert_array_equal(array, engine.infer(noisy)[name])


def test_accepts_read_only_and_strided_arrays(engine: Engine) -> None:
    inputs = batch(2)
    want = engine.infer(inputs)
    frozen = {name: np.asfortranarray(array) for name, array in inputs.items()}
    for array in frozen.values():
        array.flags.writeable = False
    for name, array in engine.infer(frozen).items():
        np.testing.assert_allclose(array, want[name], atol=1e-6)


def test_results_are_not_overwritten_by_the_next_call(engine: Engine) -> None:
    first = engine.infer(batch(1, seed=4))
    kept = {name: array.copy() for name, array in first.items()}
    engine.infer(batch(1, seed=5))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "needs input 'x'"),
        ({"x": np.zeros((1, 10, 12), np.float64)}, r"'x' .* is float64\(1, 10, 12\)"),
        ({"x": np.zeros((1, 9, 12), np.float32)}, "expected float32"),
        ({"mask": np.zeros((10,), np.float32)}, "'mask'"),
    ],
)
def test_other_inputs_are_refused(
    engine: Engine, network: Network, change: dict[str, Array | None], message: str
) -> None:
    inputs = {name: array for name, array in (network.example | change).items() if array is not None}
    with pytest.raises(EngineError, match=message):
        engine.infer(inputs)


def test_recurrences_need_no_initial_zeros(network: Network) -> None:
    graph = onnx.load_from_string(export_graph(network, network.build().eval())).graph
    recurrences = [node for node in graph.node if node.op_type == "LSTM"]
    assert recurrences
    assert not any(any(node.input[5:7]) for node in recurrences)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert all(used.intersection(node.output) for node in graph.node)


def test_static_network(pair: tuple[str, Precision], cache: Path) -> None:
    network = make_network(dynamic=False)
    opened = open_pair(pair, network, cache)
    assert opened.infer(network.example)["emotions"].shape == (1, 7)
    with pytest.raises(EngineError, match="expected float32"):
        opened.infer(batch(2))


def test_id_names_engine_and_precision(engine: Engine, pair: tuple[str, Precision]) -> None:
    assert engine.id == "-".join(pair)


def test_golden_rows_lose_one_masked_input_each(network: Network) -> None:
    example, varied = golden_inputs(network)
    np.testing.assert_array_equal(example["x"], network.example["x"])
    assert len(varied["x"]) == len(varied["mask"]) == 4
    assert varied["mask"].any(1).tolist() == [True, False, True, True]
    assert len({row.tobytes() for row in varied["x"]}) == 4


def test_unknown_engine_and_precision_are_errors(network: Network, cache: Path) -> None:
    with pytest.raises(EngineError, match="did you mean 'onnx'"):
        open_engine(network, "onx", cache=cache)
    with pytest.raises(EngineError, match="fp32, fp16, bf16"):
        open_engine(network, precision="int8", cache=cache)


def test_unsupported_precision_falls_back_with_a_warning(
    network: Network, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(network, "torch", precision="fp16", cache=cache)
    assert engine.id == "torch-fp32"
    assert "torch cannot compute in fp16" in engine.reason
    assert "torch cannot compute in fp16" in caplog.text


def test_missing_library_falls_back_with_a_warning(
    network: Network, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = find_backend("onnx-cuda")
    missing = backend.missing()
    if missing is None:
        pytest.skip("this machine has everything")
    engine = open_engine(network, "onnx-cuda", cache=cache)
    assert engine.id == "onnx-fp32"
    assert missing in engine.reason
    assert missing in caplog.text


DROPPED_ELSEWHERE = """
import gc, os, signal, sys, threading
from pathlib import Path
from mien.engines.selection import find_backend
from tests.engines.networks import make_network

backend, network, folder = find_backend(sys.argv[1]), make_network(), Path(sys.argv[2])
backend.compile(network, "fp32", folder)
engines = [backend.load(network, "fp32", folder, 1)]
thread = threading.Thread(target=lambda: (engines.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C there")
def test_ctrl_c_interrupts_after_another_thread_dropped_an_engine(pair: tuple[str, Precision], tmp_path: Path) -> None:
    name, precision = pair
    if precision != "fp32":
        pytest.skip("the same for every precision")
    command = [sys.executable, "-c", DROPPED_ELSEWHERE, name, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split()[-1:]) == (0, ["interrupted"]), ran.stderr
