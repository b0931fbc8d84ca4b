"""Eager torch: the reference that every other engine is measured and checked against.

On an NVIDIA GPU it uses cuDNN's recurrences, and one CUDA graph per inference: launching CM-MSF's several hundred small
kernels one by one takes longer than running them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.engines.base import Array, Backend, Engine, Network, Precision
from mien.engines.golden import Case, Golden, golden_inputs
from mien.errors import EngineError

if TYPE_CHECKING:
    from torch import nn

    from mien.engines.gpu_engine import GpuBinding, GpuEngine

CAPTURE_AFTER = 3


def build_module(network: Network) -> nn.Module:
    """The network's module in float32 on the CPU, in evaluation mode and without gradients."""
    return network.build().float().cpu().eval().requires_grad_(False)


def run_module(module: nn.Module, network: Network, inputs: Mapping[str, Array]) -> Case:
    """One forward pass, arrays in and arrays out."""
    import torch

    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        # Arrays from the wire are read-only, and torch warns about that on every call.
        arrays = (inputs[name] if inputs[name].flags.writeable else inputs[name].copy() for name in network.example)
        result: Any = module(*(torch.from_numpy(array).to(device) for array in arrays))
    tensors = (result,) if isinstance(result, torch.Tensor) else tuple(result)
    return {name: tensor.float().cpu().numpy() for name, tensor in zip(network.outputs, tensors, strict=True)}


def make_golden(network: Network, module: nn.Module) -> Golden:
    """Golden inputs with this module's outputs.

    Raises:
        EngineError: the network itself returns non-finite numbers.
    """
    inputs = golden_inputs(network)
    outputs = [run_module(module, network, case) for case in inputs]
    for case in outputs:
        for name, array in case.items():
            if not np.isfinite(array).all():
                raise EngineError(f"network {network.name!r} itself gives non-finite numbers in {name!r}")
    return Golden(inputs, outputs)


def cuda_engine(
    id: str, network: Network, module: nn.Module, *, graphs: bool = True, device: str = "cuda"
) -> GpuEngine:
    """A module on the GPU.

    Args:
        module: already on `device`. graphs: False launches kernels one by one.

    Raises:
        RuntimeError: CUDA cannot start.
    """
    import torch

    from mien.engines.gpu_engine import GpuBinding, GpuEngine

    def bind(arrays: Sequence[Array]) -> GpuBinding:
        kinds = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
        inputs = [torch.zeros(a.shape, dtype=kind, device=device) for a, kind in zip(arrays, kinds, strict=True)]

        def launch() -> tuple[torch.Tensor, ...]:
            made = module(*inputs)
            return (made,) if isinstance(made, torch.Tensor) else tuple(made)

        return GpuBinding(network.name, inputs, launch, graphs=graphs and device == "cuda", capture_after=CAPTURE_AFTER)

    return GpuEngine(id, network, bind, device)


def has_cuda_gpu() -> bool:
    """Whether torch can compute on an NVIDIA GPU.

    The driver is asked first: importing torch costs a process that does not need it 300 MB and a second.
    """
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


class TorchBackend(Backend):
    """Runs modules directly: nothing is compiled or stored.

    Args:
        name: what `--engine` calls it. device: what torch calls it.
    """

    package = "torch"
    cached = False

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device

    def missing(self) -> str | None:
        absent = super().missing()
        return absent or (None if self.device == "cpu" or has_cuda_gpu() else "torch finds no CUDA GPU")

    def versions(self) -> dict[str, str]:
        return {"torch": importlib.metadata.version("torch"), "device": self.device}

    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        """A no-op: the module is built on load."""

    def load(self, network: Network, precision: Precision, folder: Path, threads: int) -> Engine:
        del folder
        import torch

        torch.set_num_threads(threads)
        module = build_module(network)
        id = f"{self.name}-{precision}"
        if self.device == "cpu":
            return Engine(id, network, partial(run_module, module, network))
        # TF32 keeps only 10 mantissa bits, fewer than fp32 promises.
        torch.backends.cudnn.allow_tf32 = False
        golden = make_golden(network, module)
        try:
            engine = cuda_engine(id, network, module.to(self.device))
        except RuntimeError as error:
            raise EngineError(f"cannot move {network.name!r} to {self.device}: {error}") from error
        golden.check(engine, precision)
        return engine


backend = TorchBackend("torch", "cpu")
cuda_backend = TorchBackend("torch-cuda", "cuda")
