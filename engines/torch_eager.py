"""Torch as it is: the reference that every other engine is measured and checked against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.engines.base import Array, Artifact, Engine, Network, Precision, check_inputs
from mien.engines.golden import Case, Golden, golden_inputs
from mien.errors import EngineError

if TYPE_CHECKING:
    from torch import nn


def build_module(network: Network) -> nn.Module:
    """The network's module in float32 on the CPU, in evaluation mode and without gradients."""
    return network.build().float().cpu().eval().requires_grad_(False)


def run_module(module: nn.Module, network: Network, inputs: Mapping[str, Array]) -> Case:
    """One forward pass, arrays in and arrays out."""
    import torch

    with torch.inference_mode():
        # Arrays that came off the wire are read-only, which torch warns of on every call.
        arrays = (inputs[name] if inputs[name].flags.writeable else inputs[name].copy() for name in network.example)
        result: Any = module(*(torch.from_numpy(array) for array in arrays))
    tensors = (result,) if isinstance(result, torch.Tensor) else tuple(result)
    return {name: tensor.float().numpy() for name, tensor in zip(network.outputs, tensors, strict=True)}


def make_golden(network: Network, module: nn.Module) -> Golden:
    """Golden inputs with this module's outputs.

    Raises:
        EngineError: the network itself gives numbers that are not finite.
    """
    inputs = golden_inputs(network)
    outputs = [run_module(module, network, case) for case in inputs]
    for case in outputs:
        for name, array in case.items():
            if not np.isfinite(array).all():
                raise EngineError(f"network {network.name!r} itself gives non-finite numbers in {name!r}")
    return Golden(inputs, outputs)


class TorchEngine(Engine):
    """A torch module called as it is."""

    def __init__(self, network: Network, module: nn.Module) -> None:
        self.id = "torch-fp32"
        self.reason = ""
        self.network = network
        self.module = module

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.network, inputs)
        return run_module(self.module, self.network, inputs)


class TorchBackend:
    """Nothing is compiled and nothing is stored."""

    name = "torch"
    precisions: tuple[Precision, ...] = ("fp32",)
    cached = False

    def missing(self) -> str | None:
        import importlib.util

        return None if importlib.util.find_spec("torch") else "torch is not installed: pip install 'mien[live]'"

    def versions(self) -> dict[str, str]:
        import importlib.metadata

        return {"torch": importlib.metadata.version("torch")}

    def compile(self, network: Network, precision: Precision, folder: Path) -> Artifact:
        return Artifact(network, precision, folder)

    def load(self, artifact: Artifact, threads: int) -> Engine:
        import torch

        torch.set_num_threads(threads)
        return TorchEngine(artifact.network, build_module(artifact.network))


backend = TorchBackend()
