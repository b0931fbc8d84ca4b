"""Torch on an NVIDIA GPU: cuDNN's recurrences, and one CUDA graph per inference.

Launching CM-MSF's several hundred small kernels one by one takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Array, Network
from mien.engines.gpu_engine import GpuBinding, GpuEngine

if TYPE_CHECKING:
    import torch
    from torch import nn

CAPTURE_AFTER = 3


class TorchCudaEngine(GpuEngine):
    """A module on the GPU.

    Args:
        module: already on `device`. graphs: False launches kernels one by one.

    Raises:
        RuntimeError: CUDA cannot start.
    """

    def __init__(
        self, id: str, network: Network, module: nn.Module, *, graphs: bool = True, device: str = "cuda"
    ) -> None:
        super().__init__(id, network, device)
        self._module, self._graphs = module, graphs and device == "cuda"

    def bind(self, arrays: Sequence[Array]) -> TorchBinding:
        import torch

        inputs = [
            torch.zeros(a.shape, dtype=torch.from_numpy(np.empty(0, a.dtype)).dtype, device=self.device) for a in arrays
        ]
        return TorchBinding(self.network.name, self._module, inputs, graphs=self._graphs)


class TorchBinding(GpuBinding):
    """A module for one set of input shapes.

    Raises:
        RuntimeError: out of memory.
    """

    def __init__(self, name: str, module: nn.Module, inputs: Sequence[torch.Tensor], *, graphs: bool) -> None:
        super().__init__(name, inputs, graphs=graphs, capture_after=CAPTURE_AFTER)
        self._module = module

    def launch(self) -> tuple[torch.Tensor, ...]:
        import torch

        made = self._module(*self.inputs)
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)
