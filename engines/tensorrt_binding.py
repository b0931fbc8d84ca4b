"""One set of input shapes of a TensorRT engine: where its data lies, and how it is started.

Data goes through page-locked host memory, on a stream that is not the default one. A CUDA graph of copies and kernels
replaces the launches one by one where TensorRT lets its loops be captured; where it does not, launches it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mien.engines.base import Array, Network

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


class Ports(msgspec.Struct, frozen=True):
    """TensorRT's names, in the order of `Network.example` and `Network.outputs`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TensorRtBinding:
    """Everything for one set of input shapes: context, host and device memory, and the graph if there is one.

    Args:
        engine: a `tensorrt.ICudaEngine`. arrays: inputs of that shape, to try it with.
        stream: where it runs; not the default one. graphs: False launches copies and kernels one by one.

    Attributes:
        graph: copies and kernels as one; None where TensorRT's loops cannot be captured.

    Raises:
        RuntimeError: out of memory, or a shape that the engine was not built for.
    """

    def __init__(
        self,
        engine: Any,
        network: Network,
        ports: Ports,
        arrays: list[Array],
        stream: torch.cuda.Stream,
        *,
        graphs: bool,
    ) -> None:
        import torch

        self._stream = stream
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("TensorRT could not create an execution context; the GPU may be out of memory")
        known = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        self._host_inputs, self._inputs = [], []
        for name, array in zip(ports.inputs, arrays, strict=True):
            if name not in known:  # without effect on any output; its place is kept for `run`
                host = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype)
                self._host_inputs.append(host)
                self._inputs.append(host)
                continue
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise RuntimeError(f"shape {array.shape} is outside what the engine was built for")
            kind = _torch_type(engine.get_tensor_dtype(name))
            self._host_inputs.append(torch.empty(array.shape, dtype=kind, pin_memory=True))
            self._inputs.append(torch.empty(array.shape, dtype=kind, device="cuda"))
            self._context.set_tensor_address(name, self._inputs[-1].data_ptr())
        self._outputs = []
        for name in ports.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            tensor = torch.empty(shape, dtype=_torch_type(engine.get_tensor_dtype(name)), device="cuda")
            self._context.set_tensor_address(name, tensor.data_ptr())
            self._outputs.append(tensor)
        self._host_outputs = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in self._outputs
        ]
        # What was allocated on the default stream must be there before another one uses it.
        torch.cuda.current_stream().synchronize()
        self.graph: torch.cuda.CUDAGraph | None = None
        if graphs:
            self.graph = self._capture(arrays, network)

    def run(self, arrays: list[Array]) -> list[Array]:
        """One inference; the results are copies."""
        import torch

        for host, array in zip(self._host_inputs, arrays, strict=True):
            np.copyto(host.numpy(), array)
        with torch.cuda.stream(self._stream):
            if self.graph is not None:
                self.graph.replay()
            else:
                self._launch()
        self._stream.synchronize()
        return [host.numpy().astype(np.float32) for host in self._host_outputs]

    def _launch(self) -> None:
        """Copies in, kernels, copies out, on the current stream."""
        import torch

        for device, host in zip(self._inputs, self._host_inputs, strict=True):
            if device is not host:
                device.copy_(host, non_blocking=True)
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not start the engine")
        for host, device in zip(self._host_outputs, self._outputs, strict=True):
            host.copy_(device, non_blocking=True)

    def _capture(self, arrays: list[Array], network: Network) -> torch.cuda.CUDAGraph | None:
        """A graph that gives the same numbers as launches do, or None."""
        import torch

        plain = self.run(arrays)  # also the run that TensorRT needs before a capture
        captured = torch.cuda.CUDAGraph()
        graph: torch.cuda.CUDAGraph | None = captured
        try:
            # On a stream of its own, which a capture that fails may leave unusable.
            capturing: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.graph(captured, stream=capturing, capture_error_mode="thread_local"):
                self._launch()
            # Whatever the graph does not do again shows.
            for tensor in (*self._inputs, *self._outputs):
                tensor.fill_(7)
            torch.cuda.synchronize()
            self.graph = captured
            again = self.run(arrays)
        except RuntimeError as error:
            log.info("no CUDA graph of %r (%s); kernels are launched one by one", network.name, error)
            self.graph = graph = None
            again = self.run(arrays)
        self.graph = None
        if all(np.allclose(left, right, atol=1e-5) for left, right in zip(plain, again, strict=True)):
            return graph
        if graph is None:
            raise RuntimeError("a CUDA graph that could not be captured changed what the engine computes")
        log.warning("the CUDA graph of %r gives other numbers; kernels are launched one by one", network.name)
        return None


def _torch_type(kind: Any) -> torch.dtype:
    import torch

    if kind.name not in _TYPES:
        raise RuntimeError(f"the compiled engine takes or gives {kind.name}, which no network of mien does")
    found: torch.dtype = getattr(torch, _TYPES[kind.name])
    return found
