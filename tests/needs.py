"""Requirements of tests: pretrained files, whose absence skips them, and programs that they run."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from mien.assets import asset_path
from mien.config import AssetsConfig
from mien.errors import AssetError

ALL_ASSETS = ("face-landmarker", "whisper-tiny.en", "minilm-l6-v2")


def need_asset(name: str) -> Path:
    """The path of a pretrained file; skips the test if it is missing."""
    try:
        return asset_path(name, AssetsConfig(offline=True))
    except AssetError as error:
        pytest.skip(str(error))


def need_assets() -> None:
    """Skips the test if one of a whole session's files is missing."""
    for name in ALL_ASSETS:
        need_asset(name)


def run_program(
    command: Sequence[str], timeout_s: float = 120, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with any exit code, and capture its output. `environment`: added to this one's."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | (environment or {}),
        timeout=timeout_s,
        check=False,
    )


def fetch(port: int, path: str) -> tuple[int, str]:
    """Status code and body of a response from a local server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
