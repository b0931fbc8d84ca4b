"""`mien compile` from the command line: its output, messages and errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mien import cli
from mien.engines.cache import Cache
from mien.engines.selection import find_backend
from mien.errors import MienError
from mien.models.checkpoint import Checkpoint


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["compile", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_compiles_the_parts_and_fixed_batches(checkpoint: Checkpoint) -> None:
    output = run("--engine", "onnx", "--batch", "1,8", "--checkpoint", str(checkpoint.path))
    assert f"{checkpoint.id}/onnx-fp32" in output
    assert "onnx-fp32  batch 1" in output
    assert "onnx-fp32  batch 8" in output
    names = sorted(entry["network"] for entry in Cache().entries())
    assert names == sorted(["cmmsf", "cmmsf", "cmmsf-fusion", *(f"cmmsf-{spec.name}" for spec in checkpoint.specs)])


def test_unavailable_engine_is_replaced_and_reported(checkpoint: Checkpoint) -> None:
    """The fallback parts are those compiled before."""
    output = run("--engine", "onnx", "--precision", "fp16", "--checkpoint", str(checkpoint.path))
    assert f"{checkpoint.id}/onnx-fp32" in output
    assert "onnx cannot compute in fp16" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], r"no precision 'int8'; known: fp32, fp16, bf16"),
        (["--engine", "tensort"], r"did you mean 'tensorrt'"),
        (["--batch", "1,two"], r"--batch is '1,two'; give whole numbers"),
        (["--batch", "0"], r"every size must be 1 or more"),
        (["--target-sm", "8.9", "--engine", "onnx"], r"--target-sm is for --engine tensorrt"),
        (["--target-sm", "8.9", "--precision", "bf16"], r"in fp32 or fp16"),
    ],
)
def test_refuses_with_a_helpful_line(checkpoint: Checkpoint, arguments: list[str], message: str) -> None:
    with pytest.raises(MienError, match=message):
        run(*arguments, "--checkpoint", str(checkpoint.path))


def test_target_without_tensorrt_names_the_package(checkpoint: Checkpoint, tmp_path: Path) -> None:
    missing = find_backend("tensorrt").missing()
    if missing is None or "not installed" not in missing:
        pytest.skip("torch-tensorrt is installed")
    ran = subprocess.run(
        [sys.executable, "-m", "mien", "compile", "--target-sm", "8.9", "--checkpoint", str(checkpoint.path),
         "--output", str(tmp_path / "plans")],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert ran.returncode != 0
    assert "tensorrt-rtx" in ran.stderr
    assert "Traceback" not in ran.stderr
