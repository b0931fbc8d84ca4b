"""TensorRT on an NVIDIA GPU, through torch-tensorrt or, with the same code, torch-tensorrt-rtx.

The whole network is one engine (see `mien.engines.tensorrt.conversion`), run by TensorRT's own runtime (see
`mien.engines.tensorrt.binding`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mien.engines.base import Array, Backend, Engine, Network, Precision
from mien.engines.gpu_engine import GpuEngine
from mien.engines.tensorrt import conversion
from mien.engines.tensorrt.binding import Ports, TensorRtBinding
from mien.engines.tensorrt.importing import import_torch_tensorrt
from mien.errors import EngineError
from mien.install import installed_versions

PLAN = "engine.plan"
PORTS = "ports.json"
_PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx", "tensorrt", "tensorrt_rtx", "torch")


class TensorRtEngine(GpuEngine):
    """A deserialised engine.

    Args:
        plan: what `build_plan` made. ports: likewise.
        graphs: False launches kernels one by one.

    Raises:
        EngineError: the plan is for another GPU or version. RuntimeError: CUDA or TensorRT cannot start.
    """

    def __init__(self, id: str, network: Network, plan: bytes, ports: Ports, *, graphs: bool = True) -> None:
        import tensorrt

        super().__init__(id, network)
        self._ports, self._graphs = ports, graphs
        # The engine references contexts and runtime but does not own them.
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("TensorRT refuses the compiled engine; it was built for another GPU or version")

    def bind(self, arrays: Sequence[Array]) -> TensorRtBinding:
        return TensorRtBinding(self._engine, self.network, self._ports, arrays, graphs=self._graphs)


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

        versions = {"converter": _source_digest(), **installed_versions(_PACKAGES)}
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
            return TensorRtEngine(f"{self.name}-{precision}", network, plan, ports)
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
    return plan, Ports(definition.inputs, definition.outputs)


def fixed_batch(network: Network) -> int | None:
    """The example's rows if the network takes no other number of them, else None."""
    return None if network.dynamic else len(next(iter(network.example.values())))


def _source_digest() -> str:
    """Digest of the code that decides what the engine computes."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("engine.py", "conversion.py", "lstm.py"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


backend = TensorRtBackend()
