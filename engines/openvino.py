"""OpenVINO: an alternative on CPUs, in float32 or, where the processor supports it, bfloat16.

bfloat16 keeps 8 significant bits. The golden check decides per network whether that suffices.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mien.engines.base import Array, Backend, Engine, Network, Precision
from mien.engines.onnx import export_graph
from mien.engines.torch_eager import build_module
from mien.errors import EngineError

MODEL = "model.xml"
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """OpenVINO's CPU plugin."""

    name = package = extra = "openvino"
    precisions = ("fp32", "bf16")

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("openvino", "torch")}

    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        core = _core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this processor cannot compute in bf16")
        try:
            model = core.read_model(export_graph(network, build_module(network)))
            _openvino().save_model(model, folder / MODEL, compress_to_fp16=False)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot read network {network.name!r}: {error}") from error

    def load(self, network: Network, precision: Precision, folder: Path, threads: int) -> Engine:
        core = _core()
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = core.read_model(folder / MODEL)
            # The network's inputs that the model kept. A port may have more names than the exported one.
            ports = {name for port in model.inputs for name in port.get_names()}
            names = [name for name in network.example if name in ports]
            compiled = for_example = core.compile_model(model, "CPU", options)
            if network.dynamic:  # faster for exactly the example's shape
                model.reshape({name: list(network.example[name].shape) for name in names})
                for_example = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile network {network.name!r}: {error}") from error
        requests = {True: for_example.create_infer_request(), False: compiled.create_infer_request()}

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            request = requests[all(inputs[name].shape == array.shape for name, array in network.example.items())]
            request.infer({name: inputs[name] for name in names}, share_inputs=False)
            # The next call overwrites the request's memory.
            return {name: request.get_tensor(name).data.copy() for name in network.outputs}

        return Engine(f"{self.name}-{precision}", network, run)


def _openvino() -> Any:
    # Without its telemetry package OpenVINO skips telemetry; with it, it forks a process that reports to Google
    # Analytics, and that holds our sockets open while it cannot connect.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Its bindings rename classes on import and warn about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        import openvino
    return openvino


@functools.cache
def _core() -> Any:
    """The process's only one, which lives as long as the process.

    A core makes a stack for the signals of the thread that first compiles. Destroyed by another thread, it frees that
    stack while it is still in use, and the next signal, such as Ctrl-C, is a segmentation fault.
    """
    return _openvino().Core()


backend = OpenVinoBackend()
