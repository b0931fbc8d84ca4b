"""Torch on an NVIDIA GPU: cuDNN's recurrences, and all kernels of one inference started as one CUDA graph.

One by one, the launches of CM-MSF's several hundred small kernels take longer than the kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Array, Network
from mien.engines.gpu_engine import GpuEngine

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

CAPTURE_AFTER = 3  # inferences of one shape: a capture takes as long as many of them


class TorchCudaEngine(GpuEngine):
    """A module on the GPU.

    Args:
        module: already there. graphs: False launches kernels one by one.

    Raises:
        RuntimeError: CUDA cannot start.
    """

    def __init__(self, id: str, network: Network, module: nn.Module, *, graphs: bool = True) -> None:
        super().__init__(id, network)
        self._module, self._graphs = module, graphs

    def bind(self, arrays: list[Array]) -> TorchBinding:
        return TorchBinding(self.network.name, self._module, arrays, self._stream, graphs=self._graphs)


class TorchBinding:
    """Everything for one set of input shapes: host and device memory, and the graph once there is one.

    Args:
        name: of the network. arrays: inputs of that shape. stream: where it runs; not the default one.
        graphs: False launches kernels one by one.

    Attributes:
        graph: kernels as one; None where they are launched one by one.

    Raises:
        RuntimeError: out of memory.
    """

    def __init__(
        self, name: str, module: nn.Module, arrays: Sequence[Array], stream: torch.cuda.Stream, *, graphs: bool
    ) -> None:
        import torch

        self._name, self._module, self._stream = name, module, stream
        self._host_inputs = [torch.empty(a.shape, dtype=_torch_type(a), pin_memory=True) for a in arrays]
        self._inputs = [torch.empty(a.shape, dtype=_torch_type(a), device="cuda") for a in arrays]
        # What was allocated on the default stream must be there before another one uses it.
        torch.cuda.current_stream().synchronize()
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._until_capture = CAPTURE_AFTER if graphs else -1
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference; the results are copies."""
        if self._until_capture == 0:
            self._capture(arrays)
        self._until_capture -= 1
        return self._infer(arrays)

    def _infer(self, arrays: Sequence[Array]) -> list[Array]:
        import torch

        for host, array in zip(self._host_inputs, arrays, strict=True):
            np.copyto(host.numpy(), array)
        with torch.cuda.stream(self._stream), torch.no_grad():
            for device, host in zip(self._inputs, self._host_inputs, strict=True):
                device.copy_(host, non_blocking=True)
            if self.graph is not None:
                self.graph.replay()
            else:
                self._outputs = self._forward()
            results = [output.float().to("cpu", non_blocking=True) for output in self._outputs]
        self._stream.synchronize()
        return [result.numpy() for result in results]

    def _capture(self, arrays: Sequence[Array]) -> None:
        """Make a graph of the kernels, and keep it if it gives the same numbers."""
        import torch

        plain, captured = self._infer(arrays), torch.cuda.CUDAGraph()
        try:
            # On a stream of its own, which a capture that fails may leave unusable.
            capturing = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with (
                torch.no_grad(),
                torch.cuda.graph(captured, stream=capturing, capture_error_mode="thread_local"),
            ):
                self._outputs = self._forward()
            # Whatever the graph does not do again shows.
            for tensor in (*self._inputs, *self._outputs):
                tensor.fill_(7)
            torch.cuda.synchronize()
            self.graph = captured
            again = self._infer(arrays)
        except RuntimeError as error:
            self.graph = None
            log.info("no CUDA graph of %r (%s); kernels are launched one by one", self._name, error)
            return
        if not all(np.allclose(left, right, atol=1e-5) for left, right in zip(plain, again, strict=True)):
            self.graph = None
            log.warning("the CUDA graph of %r gives other numbers; kernels are launched one by one", self._name)

    def _forward(self) -> tuple[torch.Tensor, ...]:
        import torch

        made = self._module(*self._inputs)
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)


def _torch_type(array: Array) -> torch.dtype:
    import torch

    return torch.from_numpy(np.empty(0, array.dtype)).dtype
