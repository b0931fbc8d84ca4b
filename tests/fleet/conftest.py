"""Fleets started by tests, on real Ray, with a mark to find processes left behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

# Head of a plan for sessions that cost next to nothing; a table of the gateway's is open at its end.
SMALL = """
fleet = "small"
[capture]
cpus = 0.1
[pools]
cpus = 0.1
use = 1.0
p99_ms = 100000
[gateway]
port = {port}
"""
MIEN = [sys.executable, "-P", "-m", "mien"]


class Marked:
    """Processes that inherit a mark of this test, and the environment that has it."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"MIEN_TEST_MARK={secrets.token_hex(8)}"
        name, _, value = self.mark.partition("=")
        self.environment = {**os.environ, name: value, "XDG_STATE_HOME": str(folder), "OMP_NUM_THREADS": "1"}

    def left(self) -> list[psutil.Process]:
        """Those that run now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if self.mark in Path(f"/proc/{process.pid}/environ").read_bytes().decode("utf-8", "replace"):
                    found.append(process)
        return found

    def wait_gone(self, timeout_s: float = 15.0) -> list[str]:
        """What is still there after so long."""
        deadline_s = time.monotonic() + timeout_s
        while (left := self.left()) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        lines = []
        for process in left:
            with suppress(psutil.Error):
                lines.append(" ".join(process.cmdline())[:200])
        return lines


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Marked]:
    own = Marked(tmp_path / "state")
    yield own
    for process in own.left():
        with suppress(psutil.Error, OSError):
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def mien(marked: Marked) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, with the mark."""

    def run(*arguments: str, timeout_s: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [*MIEN, *arguments], env=marked.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or ran.returncode == 0, f"{arguments}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        return ran

    return run
