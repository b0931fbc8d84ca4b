"""TensorRT on an NVIDIA GPU, through torch-tensorrt or, with the same code, torch-tensorrt-rtx.

The whole network is one engine (see `mien.engines.tensorrt_network`), run by TensorRT's own runtime on a stream of its
own, from and to page-locked host memory. A CUDA graph of copies and kernels replaces the launches one by one where
TensorRT lets its loops be captured; where it does not, launches it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mien.engines import tensorrt_network
from mien.engines.base import Array, Artifact, Engine, Network, Precision, check_inputs
from mien.errors import EngineError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PLAN = "engine.plan"
PORTS = "ports.json"
MAX_SHAPES = 4  # batch sizes for which buffers are kept
_PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx", "tensorrt", "tensorrt_rtx", "torch")


class Ports(msgspec.Struct, frozen=True):
    """TensorRT's names, in the order of `Network.example` and `Network.outputs`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TensorRtEngine(Engine):
    """A deserialised engine, and buffers for the batch sizes that were seen last."""

    def __init__(self, id: str, network: Network, plan: bytes, ports: Ports) -> None:
        import tensorrt
        import torch

        self.id = id
        self.reason = ""
        self.network = network
        self.uses_graph: bool | None = None
        self._ports = ports
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Contexts and runtime are referenced by the engine, not owned by it.
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("TensorRT refuses the compiled engine; it was built for another GPU or version")
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], _Binding] = OrderedDict()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.network, inputs)
        arrays = [inputs[name] for name in self.network.example]
        key = tuple(array.shape for array in arrays)
        try:
            binding = self._bindings.get(key)
            if binding is None:
                binding = _Binding(self._engine, self.network, self._ports, arrays, self._stream)
                self.uses_graph = binding.graph is not None
                self._bindings[key] = binding
                if len(self._bindings) > MAX_SHAPES:
                    self._bindings.popitem(last=False)
            self._bindings.move_to_end(key)
            results = binding.run(arrays)
        except RuntimeError as error:  # out of memory, a lost device, a shape outside the profile
            raise EngineError(f"{self.id} failed on network {self.network.name!r}: {error}") from error
        return dict(zip(self.network.outputs, results, strict=True))


class _Binding:
    """Everything for one set of input shapes: context, host and device memory, and the graph if there is one."""

    def __init__(
        self, engine: Any, network: Network, ports: Ports, arrays: list[Array], stream: torch.cuda.Stream
    ) -> None:
        import torch

        self._stream = stream
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("TensorRT could not create an execution context; the GPU may be out of memory")
        known = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        self._host_inputs = [torch.from_numpy(np.ascontiguousarray(array)).pin_memory() for array in arrays]
        self._inputs = [tensor.to("cuda") for tensor in self._host_inputs]
        for name, tensor in zip(ports.inputs, self._inputs, strict=True):
            if name in known:
                if not self._context.set_input_shape(name, tuple(tensor.shape)):
                    raise RuntimeError(f"shape {tuple(tensor.shape)} is outside what the engine was built for")
                self._context.set_tensor_address(name, tensor.data_ptr())
        self._outputs = []
        for name in ports.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            tensor = torch.empty(shape, dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, tensor.data_ptr())
            self._outputs.append(tensor)
        self._host_outputs = [torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory() for tensor in self._outputs]
        torch.cuda.current_stream().synchronize()
        self.graph: torch.cuda.CUDAGraph | None = None
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
        return [host.numpy().copy() for host in self._host_outputs]

    def _launch(self) -> None:
        for device, host in zip(self._inputs, self._host_inputs, strict=True):
            device.copy_(host, non_blocking=True)
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT could not start the engine")
        for host, device in zip(self._host_outputs, self._outputs, strict=True):
            host.copy_(device, non_blocking=True)

    def _capture(self, arrays: list[Array], network: Network) -> torch.cuda.CUDAGraph | None:
        """A graph that gives the same numbers as launches do, or None."""
        import torch

        plain = self.run(arrays)  # also the run that TensorRT needs before a capture
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._launch()
            self.graph = graph
            replayed = self.run(arrays)
        except RuntimeError as error:
            log.info("no CUDA graph of %r (%s); kernels are launched one by one", network.name, error)
            self.graph = None
            # A failed capture leaves its stream unusable.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            return None
        finally:
            captured, self.graph = self.graph, None
        if not all(np.allclose(left, right, atol=1e-5) for left, right in zip(plain, replayed, strict=True)):
            log.warning("the CUDA graph of %r gives other numbers; kernels are launched one by one", network.name)
            return None
        return captured


class TensorRtBackend:
    """torch-tensorrt or torch-tensorrt-rtx, whichever is installed."""

    name = "tensorrt"
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    cached = True

    def missing(self) -> str | None:
        if not importlib.util.find_spec("torch_tensorrt"):
            return "torch-tensorrt is not installed: pip install 'mien[tensorrt]', for RTX cards 'mien[tensorrt-rtx]'"
        import torch

        return None if torch.cuda.is_available() else "torch finds no CUDA GPU"

    def versions(self) -> dict[str, str]:
        import torch

        versions = {"converter": _source_digest()}
        for name in _PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            versions |= {
                "cuda": str(torch.version.cuda),
                "driver": str(getattr(torch._C, "_cuda_getDriverVersion", int)()),
                "gpu": properties.name,
                "sm": f"{properties.major}.{properties.minor}",
            }
        return versions

    def compile(self, network: Network, precision: Precision, folder: Path) -> Artifact:
        plan, ports = build_plan(network, precision, fixed_batch(network))
        (folder / PLAN).write_bytes(plan)
        (folder / PORTS).write_bytes(msgspec.json.encode(ports))
        return Artifact(network, precision, folder)

    def load(self, artifact: Artifact, threads: int) -> Engine:
        del threads  # the GPU has its own
        # The import brings TensorRT under the one name `tensorrt`, whichever of the two it is.
        tensorrt_network.import_torch_tensorrt()
        ports = msgspec.json.decode((artifact.folder / PORTS).read_bytes(), type=Ports)
        plan = (artifact.folder / PLAN).read_bytes()
        try:
            return TensorRtEngine(f"{self.name}-{artifact.precision}", artifact.network, plan, ports)
        except RuntimeError as error:
            raise EngineError(f"TensorRT cannot start: {error}") from error


def build_plan(
    network: Network, precision: Precision, batch: int | None, target_sm: str | None = None
) -> tuple[bytes, Ports]:
    """A serialised engine for a fixed batch or, with None, for 1 to 32 rows.

    Args:
        target_sm: compute capability of the GPU to build for, which need not be here; None for the one that is.

    Raises:
        EngineError: TensorRT cannot run all of the network, or cannot build for that GPU.
    """
    program = tensorrt_network.export(network, precision, batch)
    definition = tensorrt_network.define(network, tensorrt_network.lower(program))
    plan = tensorrt_network.serialise(definition, target_sm)
    return plan, Ports(definition.inputs, definition.outputs)


def fixed_batch(network: Network) -> int | None:
    """The example's rows where the network takes no other number of them, else None."""
    return None if network.dynamic else len(next(iter(network.example.values())))


def _source_digest() -> str:
    """Of the code that decides what the engine computes."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("tensorrt.py", "tensorrt_network.py", "tensorrt_lstm.py"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


backend = TensorRtBackend()
