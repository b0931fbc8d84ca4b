"""What engines of a GPU have in common: memory, and often a CUDA graph, for each set of input shapes."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mien.engines.base import Array, Engine, Network, check_inputs, padded
from mien.errors import EngineError

if TYPE_CHECKING:
    import torch

MAX_SHAPES = 8  # for which memory and graphs are kept


class Binding(Protocol):
    """One set of input shapes. `graph` is None where kernels are launched one by one."""

    graph: torch.cuda.CUDAGraph | None

    def run(self, arrays: list[Array]) -> list[Array]:
        """One inference; the results are copies."""
        ...


class GpuEngine(Engine):
    """An engine with bindings for the shapes that were seen last.

    Attributes:
        uses_graph: whether the last inference was the replay of a CUDA graph; None before the first.

    Raises:
        RuntimeError: CUDA cannot start.
    """

    def __init__(self, id: str, network: Network) -> None:
        import torch

        self.id = id
        self.reason = ""
        self.network = network
        self.uses_graph: bool | None = None
        # Not the default stream: it waits for every other one of the process, and cannot be captured.
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], Binding] = OrderedDict()
        self._is_batched = all(0 in network.dynamic.get(name, {}) for name in network.example)

    @abstractmethod
    def bind(self, arrays: list[Array]) -> Binding:
        """Memory for inputs of these shapes.

        Raises:
            RuntimeError: out of memory, or a shape that the engine does not take.
        """

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
                binding = self._bindings[key] = self.bind(arrays)
                if len(self._bindings) > MAX_SHAPES:
                    self._bindings.popitem(last=False)
            self._bindings.move_to_end(key)
            results = binding.run(arrays)
            self.uses_graph = binding.graph is not None
        except RuntimeError as error:  # out of memory, a lost device, a shape outside the profile
            raise EngineError(f"{self.id} failed on network {self.network.name!r}: {error}") from error
        if self._is_batched:
            results = [result[:rows] for result in results]
        return dict(zip(self.network.outputs, results, strict=True))
