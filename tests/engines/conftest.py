"""Fixtures of the engine tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mien.engines.base import Network, Precision
from mien.models.architecture import ModelConfig
from mien.models.checkpoint import Checkpoint, save_checkpoint
from mien.models.cmmsf import CMMSF
from tests.engines.networks import PAIRS, SPECS, make_network, usable_pair

# Threads that wait for each other are slower than one on busy cores.
torch.set_num_threads(1)


@pytest.fixture
def network() -> Network:
    return make_network()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(0)
    model = CMMSF(SPECS, ModelConfig(dim=16, slots=10, complement="mean", reliability=True, product=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.normalise({spec.name: (torch.randn(spec.dim), torch.rand(spec.dim) + 0.5) for spec in SPECS})
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "small.safetensors", model.eval())


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines compiled once, even if several processes run tests in parallel."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "engines"


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, Precision]:
    return usable_pair(request)
