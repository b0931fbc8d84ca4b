"""Fixtures of the engine tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.engines.base import Network
from tests.engines.networks import make_network


@pytest.fixture
def network() -> Network:
    return make_network()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "engines"
