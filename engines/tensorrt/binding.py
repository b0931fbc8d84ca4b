"""One set of input shapes of a TensorRT engine: its memory, and how it is launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mien.engines.base import Array, Network
from mien.engines.gpu_engine import GpuBinding

if TYPE_CHECKING:
    import torch

_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


class Ports(msgspec.Struct, frozen=True):
    """TensorRT's names, in the order of `Network.example` and `Network.outputs`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TensorRtBinding(GpuBinding):
    """Everything for one set of input shapes: context, host and device memory, and the graph if there is one.

    Args:
        engine: a `tensorrt.ICudaEngine`. arrays: inputs of that shape.
        graphs: False launches kernels one by one, as is done where TensorRT's loops cannot be captured.

    Raises:
        RuntimeError: out of memory, or a shape that the engine was not built for.
    """

    def __init__(self, engine: Any, network: Network, ports: Ports, arrays: Sequence[Array], *, graphs: bool) -> None:
        import torch

        self._context = engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("TensorRT could not create an execution context; the GPU may be out of memory")
        known = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        inputs = []
        for name, array in zip(ports.inputs, arrays, strict=True):
            if name not in known:  # affects no output; its place is kept
                kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
            elif self._context.set_input_shape(name, tuple(array.shape)):
                kind = _torch_type(engine.get_tensor_dtype(name))
            else:
                raise RuntimeError(f"shape {array.shape} is outside what the engine was built for")
            inputs.append(torch.zeros(array.shape, dtype=kind, device="cuda"))
            if name in known:
                self._context.set_tensor_address(name, inputs[-1].data_ptr())
        made = []
        for name in ports.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            made.append(torch.empty(shape, dtype=_torch_type(engine.get_tensor_dtype(name)), device="cuda"))
            self._context.set_tensor_address(name, made[-1].data_ptr())
        # One run before the capture: TensorRT allocates lazily in its first.
        super().__init__(network.name, inputs, graphs=graphs, capture_after=1)
        self.outputs = tuple(made)

    def launch(self) -> tuple[torch.Tensor, ...]:
        import torch

        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not start the engine")
        return self.outputs


def _torch_type(kind: Any) -> torch.dtype:
    import torch

    if kind.name not in _TYPES:
        raise RuntimeError(f"the compiled engine takes or gives {kind.name}, which no network of mien does")
    found: torch.dtype = getattr(torch, _TYPES[kind.name])
    return found
