"""A compiled form is found again or rebuilt; the numbers are always right."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from mien.engines import selection
from mien.engines.base import Array, Engine, Network, Precision
from mien.engines.cache import GOLDEN, MANIFEST, Cache, identify
from mien.engines.onnx import MODEL, OnnxBackend
from mien.engines.onnx import backend as onnx
from mien.engines.torch_eager import backend as torch_eager
from mien.errors import EngineError
from mien.files import disk_use
from tests.engines.networks import make_network


def reference(network: Network) -> dict[str, Array]:
    return torch_eager.load(network, "fp32", Path(), 1).infer(network.example)


def open_onnx(network: Network, cache: Path) -> Engine:
    engine = Cache(cache).open(network, onnx, "fp32", 1)
    for name, want in reference(network).items():
        np.testing.assert_allclose(engine.infer(network.example)[name], want, atol=1e-5)
    return engine


def entry_of(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def unbuildable(network: Network) -> Network:
    """The same network for the cache, but one that can no longer be compiled."""

    def build() -> NoReturn:
        raise AssertionError("compiled again although it was in the cache")

    return Network(network.name, network.version, build, network.example, network.outputs, network.dynamic)


def test_second_open_uses_the_cache(network: Network, cache: Path) -> None:
    open_onnx(network, cache)
    again = Cache(cache).open(unbuildable(network), onnx, "fp32", 1)
    np.testing.assert_allclose(again.infer(network.example)["sentiment"], reference(network)["sentiment"], atol=1e-5)


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damaged_entry_is_rebuilt(
    network: Network, cache: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_onnx(network, cache)
    path = entry_of(cache) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    open_onnx(network, cache)
    assert "compiling it anew" in caplog.text
    assert Cache(cache).open(unbuildable(network), onnx, "fp32", 1)


def test_entry_of_another_network_is_never_used(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole files, right hashes, wrong network: the stored golden outputs are not what the engine gives."""
    mine, other = make_network("mine", seed=1), make_network("other", seed=2)
    open_onnx(mine, cache)
    mine_folder = entry_of(cache)
    open_onnx(other, cache)
    (other_folder,) = (path for path in cache.iterdir() if path.is_dir() and path != mine_folder)
    (mine_folder / MODEL).write_bytes((other_folder / MODEL).read_bytes())
    manifest = json.loads((mine_folder / MANIFEST).read_bytes())
    manifest["files"][MODEL] = json.loads((other_folder / MANIFEST).read_bytes())["files"][MODEL]
    (mine_folder / MANIFEST).write_text(json.dumps(manifest))
    open_onnx(mine, cache)
    assert "off the reference" in caplog.text


def test_key_covers_everything_that_matters(network: Network) -> None:
    base = identify(network, onnx, "fp32")
    changed = [
        identify(make_network(version="2"), onnx, "fp32"),
        identify(make_network(dynamic=False), onnx, "fp32"),
        identify(network, torch_eager, "fp32"),
        identify(network, onnx, "bf16"),
        identify(
            Network(
                network.name,
                network.version,
                network.build,
                {name: np.repeat(array, 2, 0) for name, array in network.example.items()},
                network.outputs,
            ),
            onnx,
            "fp32",
        ),
    ]
    assert all(identity != base for identity in changed)
    assert {"machine", "version onnxruntime", "version torch"} <= base.keys()


class SlowBackend(OnnxBackend):
    """ONNX Runtime, slow enough to be killed half-way through a compile."""

    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        del network, precision
        (folder / MODEL).write_bytes(b"half a model")
        (folder / "compiling").touch()
        time.sleep(60)
        raise AssertionError("should have been killed")


def _compile_slowly(cache: Path) -> None:
    Cache(cache).open(make_network(), SlowBackend("onnx", "CPUExecutionProvider"), "fp32", 1)


def test_killed_compile_leaves_no_valid_entry(network: Network, cache: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_compile_slowly, args=(cache,))
    process.start()
    try:
        while not list(cache.glob("*.partial/compiling")):
            assert process.is_alive()
            time.sleep(0.02)
        assert process.pid
        os.kill(process.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    finally:
        process.join(30)
    assert not Cache(cache).entries()
    open_onnx(network, cache)  # the lock died with its owner
    assert not list(cache.glob("*.partial"))


def _open_in_process(cache: Path) -> None:
    open_onnx(make_network(), cache)


def test_concurrent_processes_share_one_compile(cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_open_in_process, args=(cache,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(Cache(cache).entries()) == 1


def test_unwritable_folder_is_replaced(network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    open_onnx(network, blocked / "engines")
    assert "cannot write compiled networks" in caplog.text


class WrongBackend(OnnxBackend):
    """Compiles a different network, as a broken converter would."""

    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        other = make_network(network.version, seed=9)
        super().compile(other, precision, folder)


def test_engine_with_wrong_outputs_is_replaced(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mien.engines.onnx.backend", WrongBackend("onnx", "CPUExecutionProvider"))
    with pytest.raises(EngineError, match="off the reference"):
        selection.open_backend(network, selection.find_backend("onnx"), "fp32", 1, Cache(cache))
    assert not Cache(cache).entries()
    with caplog.at_level(logging.WARNING):
        engine = selection.open_engine(network, "onnx", cache=cache)
    assert engine.id == "torch-fp32"
    assert "off the reference" in engine.reason
    assert "off the reference" in caplog.text


def test_clear_frees_everything(network: Network, cache: Path) -> None:
    engine = open_onnx(network, cache)
    (entry,) = Cache(cache).entries()
    assert (entry["network"], entry["backend"], entry["precision"]) == ("small", "onnx", "fp32")
    assert Cache(cache).clear() >= entry["bytes"]
    assert not Cache(cache).entries()
    assert engine.infer(network.example)
    assert Cache(cache / "never made").clear() == 0


def test_unused_entries_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.engines.cache.MOST_ENTRIES", 2)
    open_onnx(make_network("1"), cache)
    open_onnx(make_network("2"), cache)
    for folder in cache.glob("*/"):
        os.utime(folder / MANIFEST, (1, 1))
    open_onnx(make_network("1"), cache)
    open_onnx(make_network("3"), cache)
    kept = {json.loads((folder / MANIFEST).read_bytes())["identity"]["version"] for folder in cache.glob("*/")}
    assert kept == {"1", "3"}


def test_equal_files_of_two_entries_are_stored_once(network: Network, cache: Path) -> None:
    open_onnx(network, cache)
    size = disk_use(cache)
    again = Network(network.name, "2", network.build, network.example, network.outputs, network.dynamic)
    open_onnx(again, cache)
    manifests = sum(path.stat().st_size for path in cache.glob(f"*/{MANIFEST}"))
    assert len(Cache(cache).entries()) == 2
    assert disk_use(cache) < size + manifests
    # Damage in one shows in both, is noticed in both, and repaired.
    damaged = entry_with(cache, network.version) / MODEL
    damaged.write_bytes(damaged.read_bytes()[:-1])
    open_onnx(network, cache)
    open_onnx(again, cache)


def entry_with(cache: Path, version: str) -> Path:
    """The entry of a version of the network."""
    found = [
        path.parent
        for path in cache.glob(f"*/{MANIFEST}")
        if json.loads(path.read_text())["identity"]["version"] == version
    ]
    return found[0]


def test_the_cache_is_bounded_by_its_size(network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_onnx(make_network("old", seed=3), cache)
    old = entry_of(cache)
    os.utime(old / MANIFEST, (0, 0))
    monkeypatch.setattr("mien.engines.cache.MOST_BYTES", disk_use(cache) + 1)
    open_onnx(network, cache)
    assert not old.exists()
    assert len(Cache(cache).entries()) == 1, "the newest stays, however large"
