"""Networks are compiled in a subprocess, so that the process that runs them never loads torch."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from mien.engines import apart
from mien.engines.base import Network
from mien.engines.cache import Cache
from mien.engines.cmmsf import encoder_network, fusion_network, whole_network
from mien.engines.predictor import Predictor
from mien.engines.selection import choose_engine, compile_together, open_engine
from mien.errors import EngineError
from mien.models.checkpoint import Checkpoint
from tests.waiting import wait_until


def test_a_first_run_loads_no_torch(checkpoint: Checkpoint, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mien.engines.predictor import Predictor\n"
        "from mien.models.checkpoint import load_checkpoint\n"
        "predictor = Predictor(load_checkpoint(sys.argv[1]), 'auto', cache=Path(sys.argv[2]))\n"
        "print(predictor.id, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(checkpoint.path), str(cache)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    id, loaded = ran.stdout.split()
    assert id == Predictor(checkpoint, "auto", cache=cache).id
    if not id.endswith("torch-fp32"):
        assert loaded == "False"
        assert {"cmmsf", "cmmsf-fusion"} <= {entry["network"] for entry in Cache(cache).entries()}


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_a_first_run_without_a_traceback(checkpoint: Checkpoint, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mien", "compile", "--engine", "onnx", "--checkpoint", str(checkpoint.path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)})  # fmt: skip
    found: list[psutil.Process] = []

    def is_compiling() -> bool:
        with suppress(psutil.NoSuchProcess):  # there are others, which end at once
            children = psutil.Process(process.pid).children()
            found.extend(child for child in children if "mien.engines.apart" in child.cmdline())
        return bool(found)

    wait_until(is_compiling)
    child = found[0]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
    assert int(status["SigBlk"], 16) & 1 << (signal.SIGINT - 1), "it would answer with a traceback"
    os.killpg(process.pid, signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_another_process_builds_the_same_network(checkpoint: Checkpoint) -> None:
    for network in (whole_network(checkpoint), whole_network(checkpoint, 3), fusion_network(checkpoint)):
        assert network.origin is not None
        again = apart.make(network.origin)
        assert (again.name, again.version, again.outputs) == (network.name, network.version, network.outputs)
        for name, value in network.example.items():
            np.testing.assert_array_equal(again.example[name], value)


def test_compile_error_in_a_subprocess_is_reported(checkpoint: Checkpoint, compiled: Path) -> None:
    network = whole_network(checkpoint)
    with pytest.raises(EngineError, match="there is no precision 'fp7'"):
        apart.compile_in_subprocess([network], "auto", "fp7", 1, compiled)
    assert choose_engine(network, "fp32", 1, compiled).medians_ms


def test_parts_of_a_model_are_compiled_in_one_process(
    checkpoint: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process loads torch anew."""
    orders: list[list[str]] = []

    def follow(networks: Sequence[Network], *_: object) -> None:
        orders.append([network.name for network in networks])

    monkeypatch.setattr("mien.engines.cache.compile_in_subprocess", follow)
    parts = [fusion_network(checkpoint), *(encoder_network(checkpoint, spec) for spec in checkpoint.specs[:1])]
    compile_together(parts, "onnx", "fp32", 1, cache)
    compile_together(parts, "torch", "fp32", 1, cache)  # which compiles nothing
    compile_together(parts, "no such engine", "fp32", 1, cache)  # which opening it says
    assert orders == [[network.name for network in parts]]


@pytest.mark.parametrize("function", ["mien.engines.nosuch:network", "os:abort"])
def test_engine_opens_although_its_compiler_process_dies(
    network: Network, cache: Path, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    lost = Network(
        network.name, network.version, network.build, network.example, network.outputs, network.dynamic,
        (function, {}),
    )  # fmt: skip
    engine = open_engine(lost, "onnx", cache=cache)
    assert engine.id == "onnx-fp32"
    assert "compiling in this process" in caplog.text


def test_requests_and_replies_are_json() -> None:
    origins = (("a:b", {"folder": "ü", "adapters": None, "batch": 3}),)
    request: apart.Request = (origins, "auto", "fp32", 1, "/tmp")
    assert msgspec.json.decode(msgspec.json.encode(request), type=apart.Request) == request
