"""CM-MSF at its default sizes, captured and lowered for TensorRT once. Needs `mien[tensorrt-rtx]` and no GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mien.engines.base import Array, Network, Precision
from mien.engines.cmmsf import whole_network
from mien.engines.tensorrt import conversion
from mien.engines.tensorrt.conversion import import_torch_tensorrt
from mien.engines.torch_eager import build_module, run_module
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mien.models.cmmsf import CMMSF
from mien.models.weights import SHIPPED

if importlib.util.find_spec("torch_tensorrt") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # Brings TensorRT under the name `tensorrt`, whichever of its two packages is installed.
    import_torch_tensorrt()

SPECS = (
    ModalitySpec("text", 384, 0, 50, snapshot=True),
    ModalitySpec("audio", 68, 50, 250),
    ModalitySpec("vision", 119, 10, 50),
)

# Name -> precision and rows; None leaves the number of rows open.
FORMS: dict[str, tuple[Precision, int | None]] = {
    "static": ("fp32", 1),
    "static-4": ("fp32", 4),
    "static-8": ("fp32", 8),
    "dynamic": ("fp32", None),
    "half": ("fp16", 1),
    "half-8": ("fp16", 8),
    "half-dynamic": ("fp16", None),
}


@dataclass(frozen=True)
class Form:
    """One way of compiling a network: captured, lowered and defined in TensorRT."""

    network: Network
    precision: Precision
    batch: int | None
    graph: Any
    definition: conversion.Definition


def compile_form(network: Network, precision: Precision, batch: int | None) -> Form:
    graph = conversion.lower(conversion.export(network, precision, batch))
    return Form(network, precision, batch, graph, conversion.define(network, graph))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The default weights; random ones of the default sizes if there are none yet."""
    if SHIPPED.fusion.exists():
        return load_checkpoint()
    torch.manual_seed(0)
    model = CMMSF(SPECS, ModelConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that every layer matters
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "cmmsf.safetensors", model.eval())


@pytest.fixture(scope="session")
def module(checkpoint: Checkpoint) -> nn.Module:
    return build_module(whole_network(checkpoint))


@pytest.fixture(scope="session")
def form(checkpoint: Checkpoint) -> Callable[[str], Form]:
    """A form of CM-MSF by its name in `FORMS`."""
    return cache(lambda name: compile_form(whole_network(checkpoint), *FORMS[name]))


def windows(network: Network, rows: int, seed: int = 0) -> dict[str, Array]:
    """Windows around the example, each with a different part observed; the second lacks a whole modality."""
    random = np.random.default_rng(seed)
    inputs = {}
    for number, (name, example) in enumerate(network.example.items()):
        array = np.repeat(example[:1], rows, 0)
        if array.ndim == 2:
            array = (random.random(array.shape) < random.uniform(0.3, 1.0, (rows, 1))).astype(np.float32)
            if rows > 1 and number == 3:
                array[1] = 0
        else:
            spread = example.std((0, 1), keepdims=True)
            array = (array + random.standard_normal(array.shape) * spread).astype(np.float32)
        inputs[name] = array
    return inputs


def reference(module: nn.Module, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
    return run_module(module, network, inputs)
