"""Running the product like a user: real processes, real sockets, the built-in sample and the default weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from mien.install import SAMPLE
from tests.ports import free_ports

# Not determined by the clip: durations, names, and how rows were split into messages.
RUN_DEPENDENT = ("latency", "run", "session", "inputs")


def command(*arguments: str) -> list[str]:
    """A `mien` command line for this very Python."""
    return [sys.executable, "-m", "mien", *arguments]


def run_json(port: int, *arguments: str, timeout_s: float = 240) -> tuple[list[dict[str, Any]], str]:
    """Run `mien run --json` to its end: its predictions, and its standard error."""
    ran = subprocess.run(
        command("run", "--json", "--port", str(port), "--session", f"test-{os.getpid()}-{port}", *arguments),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr


def comparable(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions without fields that the clip does not determine: durations, and names."""
    return [{key: value for key, value in p.items() if key not in RUN_DEPENDENT} for p in predictions]


@pytest.fixture(scope="session")
def fast_sample(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The predictions of the whole sample, played in full."""
    del tmp_path_factory
    return run_json(free_ports(), "--clip", str(SAMPLE), "--fast")[0]


@pytest.fixture
def port() -> int:
    """The first of four ports that are free, as far as one can know."""
    return free_ports()
