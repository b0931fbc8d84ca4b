"""Torch on an NVIDIA GPU: cuDNN's recurrences, and all kernels of one inference started as one CUDA graph.

One by one, the launches of CM-MSF's several hundred small kernels take longer than the kernels.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Array, Engine, Network, check_inputs, padded
from mien.errors import EngineError

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

MAX_SHAPES = 8  # for which buffers and graphs are kept
CAPTURE_AFTER = 3  # inferences of one shape: a capture takes as long as many of them


class TorchCudaEngine(Engine):
    """A module on the GPU, and buffers for the shapes that were seen last.

    Args:
        module: already there. graphs: False launches kernels one by one.

    Attributes:
        uses_graph: whether the last inference was the replay of a CUDA graph.

    Raises:
        RuntimeError: CUDA cannot start.
    """

    def __init__(self, id: str, network: Network, module: nn.Module, *, graphs: bool = True) -> None:
        import torch

        self.id = id
        self.reason = ""
        self.network = network
        self.uses_graph = False
        self._module, self._graphs = module, graphs
        # Not the default stream: it waits for every other one of the process, and cannot be captured.
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], Binding] = OrderedDict()
        self._is_batched = all(0 in network.dynamic.get(name, {}) for name in network.example)

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.network, inputs)
        arrays = [inputs[name] for name in self.network.example]
        rows = len(arrays[0])
        if self._is_batched:
            arrays = [padded(array) for array in arrays]
        key = tuple(array.shape for array in arrays)
        try:
            binding = self._bindings.get(key)
            if binding is None:
                binding = self._bindings[key] = Binding(self._module, arrays, self._stream)
                if len(self._bindings) > MAX_SHAPES:
                    self._bindings.popitem(last=False)
            self._bindings.move_to_end(key)
            if self._graphs and binding.runs == CAPTURE_AFTER:
                binding.capture(self.network.name)
            self.uses_graph = binding.graph is not None
            results = binding.run(arrays)
        except RuntimeError as error:  # out of memory, a lost device
            raise EngineError(f"{self.id} failed on network {self.network.name!r}: {error}") from error
        if self._is_batched:
            results = [result[:rows] for result in results]
        return dict(zip(self.network.outputs, results, strict=True))


class Binding:
    """Everything for one set of input shapes: host and device memory, and the graph once there is one.

    Args:
        arrays: inputs of that shape. stream: where it runs; not the default one.

    Attributes:
        runs: inferences so far. graph: kernels as one; None where they are launched one by one.

    Raises:
        RuntimeError: out of memory.
    """

    def __init__(self, module: nn.Module, arrays: Sequence[Array], stream: torch.cuda.Stream) -> None:
        import torch

        self._module, self._stream = module, stream
        self._host_inputs = [torch.empty(a.shape, dtype=_torch_type(a), pin_memory=True) for a in arrays]
        self._inputs = [torch.empty(a.shape, dtype=_torch_type(a), device="cuda") for a in arrays]
        # What was allocated on the default stream must be there before another one uses it.
        torch.cuda.current_stream().synchronize()
        self._outputs: tuple[torch.Tensor, ...] = ()
        self.runs = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference; the results are copies."""
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
        self.runs += 1
        return [result.numpy() for result in results]

    def capture(self, name: str) -> None:
        """Make a graph of the kernels, and keep it if it gives the same numbers."""
        import torch

        arrays = [host.numpy().copy() for host in self._host_inputs]
        plain, captured = self.run(arrays), torch.cuda.CUDAGraph()
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
            again = self.run(arrays)
        except RuntimeError as error:
            self.graph = None
            log.info("no CUDA graph of %r (%s); kernels are launched one by one", name, error)
            return
        if not all(np.allclose(left, right, atol=1e-5) for left, right in zip(plain, again, strict=True)):
            self.graph = None
            log.warning("the CUDA graph of %r gives other numbers; kernels are launched one by one", name)

    def _forward(self) -> tuple[torch.Tensor, ...]:
        import torch

        made = self._module(*self._inputs)
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)


def _torch_type(array: Array) -> torch.dtype:
    import torch

    return torch.from_numpy(np.empty(0, array.dtype)).dtype
