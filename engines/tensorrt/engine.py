"""TensorRT on an NVIDIA GPU, through torch-tensorrt or, with the same code, torch-tensorrt-rtx.

The whole network is one engine (see `mien.engines.tensorrt.conversion`), run by TensorRT's own runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mien.engines.base import Array, Backend, Engine, Network, Precision
from mien.engines.tensorrt import conversion
from mien.engines.tensorrt.conversion import import_torch_tensorrt
from mien.errors import EngineError
from mien.files import digest_of
from mien.install import installed_versions

if TYPE_CHECKING:
    import torch

    from mien.engines.gpu_engine import GpuBinding, GpuEngine

PLAN = "engine.plan"
PORTS = "ports.json"
_PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx", "tensorrt", "tensorrt_rtx", "torch")
_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
# TensorRT's names of inputs and outputs, in the order of `Network.example` and `Network.outputs`.
Ports = tuple[tuple[str, ...], tuple[str, ...]]


def bind(engine: Any, network: Network, ports: Ports, arrays: Sequence[Array], *, graphs: bool) -> GpuBinding:
    """Everything for one set of input shapes: context, host and device memory, and the graph if there is one.

    Args:
        engine: a `tensorrt.ICudaEngine`. arrays: inputs of that shape.
        graphs: False launches kernels one by one, as is done where TensorRT's loops cannot be captured.

    Raises:
        RuntimeError: out of memory, or a shape that the engine was not built for.
    """
    import torch

    from mien.engines.gpu_engine import GpuBinding

    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError("TensorRT could not create an execution context; the GPU may be out of memory")
    known = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    inputs, outputs = [], []
    for name, array in zip(ports[0], arrays, strict=True):
        if name not in known:  # affects no output; its place is kept
            kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        elif context.set_input_shape(name, tuple(array.shape)):
            kind = _torch_type(engine.get_tensor_dtype(name))
        else:
            raise RuntimeError(f"shape {array.shape} is outside what the engine was built for")
        inputs.append(torch.zeros(array.shape, dtype=kind, device="cuda"))
        if name in known:
            context.set_tensor_address(name, inputs[-1].data_ptr())
    for name in ports[1]:
        shape = tuple(context.get_tensor_shape(name))
        outputs.append(torch.empty(shape, dtype=_torch_type(engine.get_tensor_dtype(name)), device="cuda"))
        context.set_tensor_address(name, outputs[-1].data_ptr())

    def launch() -> tuple[torch.Tensor, ...]:
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not start the engine")
        return tuple(outputs)

    # One run before the capture: TensorRT allocates lazily in its first.
    return GpuBinding(network.name, inputs, launch, graphs=graphs, capture_after=1)


def _torch_type(kind: Any) -> torch.dtype:
    import torch

    if kind.name not in _TYPES:
        raise RuntimeError(f"the compiled engine takes or gives {kind.name}, which no network of mien does")
    found: torch.dtype = getattr(torch, _TYPES[kind.name])
    return found


def open_plan(id: str, network: Network, plan: bytes, ports: Ports, *, graphs: bool = True) -> GpuEngine:
    """A deserialised engine.

    Args:
        plan: what `build_plan` made. ports: likewise.
        graphs: False launches kernels one by one.

    Raises:
        EngineError: the plan is for another GPU or version. RuntimeError: CUDA or TensorRT cannot start.
    """
    import tensorrt

    from mien.engines.gpu_engine import GpuEngine

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
    # The engine references its runtime but does not own it.
    owned = runtime, runtime.deserialize_cuda_engine(plan)
    if owned[1] is None:
        raise EngineError("TensorRT refuses the compiled engine; it was built for another GPU or version")
    return GpuEngine(id, network, lambda arrays: bind(owned[1], network, ports, arrays, graphs=graphs))


class TensorRtBackend(Backend):
    """torch-tensorrt or torch-tensorrt-rtx, whichever is installed."""

    name = extra = "tensorrt"
    package = "torch_tensorrt"
    precisions = ("fp32", "fp16")

    def missing(self) -> str | None:
        if absent := super().missing():
            return f"{absent}; for RTX cards the extra tensorrt-rtx"
        import torch

        return None if torch.cuda.is_available() else "torch finds no CUDA GPU"

    def versions(self) -> dict[str, str]:
        import torch

        # The code that decides what the engine computes.
        converter = digest_of(Path(__file__).parent, ("engine.py", "conversion.py", "lstm.py"))
        versions = {"converter": converter, **installed_versions(_PACKAGES)}
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            versions |= {
                "cuda": str(torch.version.cuda),
                "driver": str(getattr(torch._C, "_cuda_getDriverVersion", int)()),
                "gpu": properties.name,
                "sm": f"{properties.major}.{properties.minor}",
            }
        return versions

    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        plan, ports = build_plan(network, precision, fixed_batch(network))
        (folder / PLAN).write_bytes(plan)
        (folder / PORTS).write_bytes(msgspec.json.encode(ports))

    def load(self, network: Network, precision: Precision, folder: Path, threads: int) -> Engine:
        del threads  # the GPU has its own
        # The import provides TensorRT under the one name `tensorrt`, whichever of the two it is.
        import_torch_tensorrt()
        ports = msgspec.json.decode((folder / PORTS).read_bytes(), type=Ports)
        plan = (folder / PLAN).read_bytes()
        try:
            return open_plan(f"{self.name}-{precision}", network, plan, ports)
        except RuntimeError as error:
            raise EngineError(f"TensorRT cannot start: {error}") from error


def build_plan(
    network: Network, precision: Precision, batch: int | None, target_sm: str | None = None
) -> tuple[bytes, Ports]:
    """A serialised engine for a fixed batch or, with None, for 1 to `MAX_BATCH` rows.

    Args:
        target_sm: compute capability of the GPU to build for, which need not be present; None for the present one.

    Raises:
        EngineError: TensorRT cannot run all of the network, or cannot build for that GPU.
    """
    capability = None if target_sm is None else conversion.capability_of(target_sm)
    program = conversion.export(network, precision, batch)
    definition = conversion.define(network, conversion.lower(program))
    plan = conversion.serialise(definition, capability)
    return plan, (definition.inputs, definition.outputs)


def fixed_batch(network: Network) -> int | None:
    """The example's rows if the network takes no other number of them, else None."""
    return None if network.dynamic else len(next(iter(network.example.values())))


backend = TensorRtBackend()
