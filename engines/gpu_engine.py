"""Base of GPU engines: device memory, and often a CUDA graph, per set of input shapes."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from mien.engines.base import MAX_BATCH, Array, Engine, Network, check_inputs, padded
from mien.errors import EngineError

log = logging.getLogger(__name__)

MAX_SHAPES = MAX_BATCH.bit_length() + 2  # cached: every power of two, and two others


class GpuEngine(Engine):
    """An engine with bindings for the most recently used shapes.

    Args:
        bind: allocates memory for inputs of the arrays' shapes. Raises RuntimeError if it is out of memory, or the
            engine does not support a shape.
        device: "cuda"; "cpu" computes the same without a GPU, for tests.

    Attributes:
        uses_graph: whether the last inference replayed a CUDA graph; None before the first.

    Raises:
        RuntimeError: CUDA cannot start.
    """

    on_gpu = True

    def __init__(
        self, id: str, network: Network, bind: Callable[[Sequence[Array]], GpuBinding], device: str = "cuda"
    ) -> None:
        super().__init__(id, network)
        self.device, self._bind = device, bind
        self.uses_graph: bool | None = None
        # Not the default stream: it synchronises with all others of the process and cannot be captured.
        self.stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], GpuBinding] = OrderedDict()
        self._is_batched = all(0 in network.dynamic.get(name, {}) for name in network.example)

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.network, inputs)
        arrays = [inputs[name] for name in self.network.example]
        rows = len(arrays[0])
        if self._is_batched:
            arrays = [padded(array) for array in arrays]
        try:
            binding = self._binding([array.shape for array in arrays])
            with on_stream(self.stream):
                binding.put(arrays)
                results = binding.take(binding.run())
            self.uses_graph = binding.graph is not None
        except RuntimeError as error:  # out of memory, a lost device, a shape outside the profile
            raise EngineError(f"{self.id} failed on network {self.network.name!r}: {error}") from error
        if self._is_batched:
            results = [result[:rows] for result in results]
        return dict(zip(self.network.outputs, results, strict=True))

    def binding_for(self, rows: int) -> GpuBinding:
        """Device inputs and outputs for that many rows, for callers whose data is on the GPU already.

        Raises:
            RuntimeError: out of memory, or more rows than the engine supports.
        """
        return self._binding([(rows, *array.shape[1:]) for array in self.network.example.values()])

    def _binding(self, shapes: Sequence[tuple[int, ...]]) -> GpuBinding:
        key = tuple(shapes)
        binding = self._bindings.get(key)
        if binding is None:
            like = zip(self.network.example.values(), shapes, strict=True)
            binding = self._bindings[key] = self._bind([np.resize(example, shape) for example, shape in like])
            if len(self._bindings) > MAX_SHAPES:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(key)
        return binding


class GpuBinding:
    """State for one set of input shapes: host and device memory, and the graph once captured.

    Args:
        name: of the network. inputs: in device memory. graphs: False launches kernels one by one.
        launch: launches the kernels on the current stream. Returns their outputs, which the next call may overwrite.
        capture_after: inferences before the kernels are captured: a capture costs as much as many of them.

    Attributes:
        inputs: what the kernels read. outputs: what they wrote last.
        graph: the captured kernels; None while they are launched one by one.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[torch.Tensor],
        launch: Callable[[], tuple[torch.Tensor, ...]],
        *,
        graphs: bool,
        capture_after: int,
    ) -> None:
        self.inputs, self._launch = list(inputs), launch
        self.outputs: tuple[torch.Tensor, ...] = ()
        self.graph: torch.cuda.CUDAGraph | None = None
        self._name = name
        self._until_capture = capture_after if graphs else -1
        pinned = any(tensor.is_cuda for tensor in inputs)
        self._host_inputs = [torch.empty(t.shape, dtype=t.dtype, pin_memory=pinned) for t in inputs]
        self._host_outputs: list[torch.Tensor] = []
        self._fetched: torch.cuda.Event | None = None  # None without a GPU
        if pinned:
            # Memory allocated on the default stream must be ready before another stream uses it.
            torch.cuda.current_stream().synchronize()

    def put(self, arrays: Sequence[Array]) -> None:
        """Copy inputs from the host, on the current stream."""
        for host, device, array in zip(self._host_inputs, self.inputs, arrays, strict=True):
            np.copyto(host.numpy(), array)
            device.copy_(host, non_blocking=True)

    def run(self) -> tuple[torch.Tensor, ...]:
        """Run one inference on `inputs`, on the current stream; outputs as for `launch`."""
        with torch.no_grad():
            if self._until_capture == 0:
                self._capture()
            self._until_capture -= 1
            if self.graph is not None:
                self.graph.replay()
            else:
                self.outputs = self._launch()
        return self.outputs

    def warm_up(self) -> None:
        """Run on the current stream until the graph is captured, if enabled."""
        for _ in range(max(self._until_capture, 0) + 1):
            self.run()

    def take(self, outputs: Sequence[torch.Tensor]) -> list[Array]:
        """Outputs as float32 on the host; waits for the current stream."""
        self.fetch(outputs)
        return self.fetched()

    def fetch(self, outputs: Sequence[torch.Tensor]) -> None:
        """Begin to copy outputs to the host, on the current stream."""
        if not self._host_outputs:
            pinned = outputs[0].is_cuda
            self._host_outputs = [torch.empty(t.shape, dtype=t.dtype, pin_memory=pinned) for t in outputs]
            self._fetched = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        for host, device in zip(self._host_outputs, outputs, strict=True):
            host.copy_(device, non_blocking=True)
        if self._fetched is not None:
            self._fetched.record()

    @property
    def is_fetched(self) -> bool:
        """Whether what `fetch` began is done."""
        return self._fetched is None or bool(self._fetched.query())  # type: ignore[no-untyped-call]

    def fetched(self) -> list[Array]:
        """What `fetch` copies, as float32; waits for it."""
        if self._fetched is not None:
            self._fetched.synchronize()
        return [host.numpy().astype(np.float32) for host in self._host_outputs]

    def _capture(self) -> None:
        """Capture the kernels as a graph, and keep it if it reproduces their numbers."""
        captured, given = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in self.inputs]
        plain = [tensor.clone() for tensor in self._launch()]
        torch.cuda.synchronize()
        try:
            # On its own stream, since a failed capture may leave the stream unusable.
            capturing = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.graph(captured, stream=capturing, capture_error_mode="thread_local"):
                self.outputs = self._launch()
            # So that stale outputs show if the graph fails to recompute them.
            for tensor in (*self.inputs, *self.outputs):
                tensor.fill_(7)
            torch.cuda.synchronize()
        except RuntimeError as error:
            log.info("no CUDA graph of %r (%s); kernels are launched one by one", self._name, error)
            self._restore(given)
            return
        self._restore(given)
        captured.replay()
        torch.cuda.synchronize()
        if all(torch.allclose(left, right, atol=1e-5) for left, right in zip(plain, self.outputs, strict=True)):
            self.graph = captured
        else:
            log.warning("the CUDA graph of %r gives other numbers; kernels are launched one by one", self._name)

    def _restore(self, inputs: Sequence[torch.Tensor]) -> None:
        for tensor, given in zip(self.inputs, inputs, strict=True):
            tensor.copy_(given)
        torch.cuda.synchronize()


def on_stream(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[object]:
    """Context for launching work on that stream; a no-op without a GPU."""
    return torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext()


def after(
    earlier: torch.cuda.Stream | None, stream: torch.cuda.Stream | None
) -> contextlib.AbstractContextManager[object]:
    """As `on_stream(stream)`, for work that waits for all that `earlier` has been given until now."""
    if stream is not None and earlier is not None:
        stream.wait_stream(earlier)
    return on_stream(stream)
