"""ONNX Runtime: the default on a CPU, and on CUDA where its GPU build is installed.

Graphs come from the TorchScript exporter: like the newer one it keeps one LSTM operator per `nn.LSTM`, its graph runs
equally fast, and it takes a tenth of the time. The graph is optimised at compile time, not at load time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.engines.base import Array, Backend, Engine, Network, Precision
from mien.engines.torch_eager import build_module
from mien.errors import EngineError

if TYPE_CHECKING:
    from torch import nn

OPSET = 20  # the first with GELU as one operator
MODEL = "model.onnx"
_CPU_BATCH = 8  # windows per run on a CPU: 16 are no faster, 32 miss the cache; each takes 4 MB while it runs


class OnnxBackend(Backend):
    """One execution provider of ONNX Runtime; `provider` is ONNX Runtime's name for it."""

    package = "onnxruntime"

    def __init__(self, name: str, provider: str) -> None:
        self.name = name
        self.provider = provider

    def missing(self) -> str | None:
        if absent := super().missing():
            return absent
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {self.provider}: pip install onnxruntime-gpu in its place"
        return None

    def versions(self) -> dict[str, str]:
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "torch": importlib.metadata.version("torch"),
            "opset": str(OPSET),
        }

    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        del precision  # there is only one
        graph = export_graph(network, build_module(network))
        # Creating a session writes the optimised graph: fused, constant-folded, laid out for this CPU.
        self._open(graph, threads=1, optimised=folder / MODEL)

    def load(self, network: Network, precision: Precision, folder: Path, threads: int) -> Engine:
        session = self._open((folder / MODEL).read_bytes(), threads, optimised=None)
        at_once = _CPU_BATCH if self.provider == "CPUExecutionProvider" else sys.maxsize
        names, kept = list(network.outputs), [value.name for value in session.get_inputs()]
        splits = all(network.dynamic.get(name, {}).get(0) == "batch" for name in kept)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            given = {name: inputs[name] for name in kept}  # the exporter drops inputs that affect no output
            count = max(map(len, given.values()), default=0)
            if count <= at_once or not splits:
                return dict(zip(names, session.run(names, given), strict=True))
            cuts = [slice(at, at + at_once) for at in range(0, count, at_once)]
            runs = [session.run(names, {name: array[cut] for name, array in given.items()}) for cut in cuts]
            return {name: np.concatenate(parts) for name, *parts in zip(names, *runs, strict=True)}

        return Engine(f"{self.name}-{precision}", network, run)

    def _open(self, model: bytes, threads: int, optimised: Path | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread takes the core that a capture worker needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.log_severity_level = 4  # failures are raised, not logged
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        if optimised:
            options.optimized_model_filepath = str(optimised)
        providers = [self.provider] + ["CPUExecutionProvider"] * (self.provider != "CPUExecutionProvider")
        try:
            session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot open the compiled network: {error}") from error
        if session.get_providers()[0] != self.provider:
            raise EngineError(f"ONNX Runtime did not start {self.provider}; check the CUDA and cuDNN libraries")
        return session


def export_graph(network: Network, module: nn.Module) -> bytes:
    """The network as a serialised ONNX graph.

    Raises:
        EngineError: torch's exporter cannot express it.
    """
    import torch

    arguments = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in network.example.values())
    with tempfile.TemporaryDirectory() as folder, _quiet_exporter():
        path = Path(folder) / MODEL
        try:
            torch.onnx.export(
                module,
                arguments,
                path,
                input_names=list(network.example),
                output_names=list(network.outputs),
                dynamic_axes=network.dynamic or None,
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # it raises what it likes
            line = str(error).strip().split("\n")[0] or type(error).__name__
            raise EngineError(f"network {network.name!r} cannot be exported to ONNX: {line}") from error
        return _without_zero_states(path.read_bytes())


def _without_zero_states(model: bytes) -> bytes:
    """The graph without its LSTMs' initial states.

    They are zeros, built from the batch's shape on each call; zeros are the default anyway.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.load_from_string(model)
    nodes = proto.graph.node
    zeros = {
        node.output[0]
        for node in nodes
        if node.op_type == "ConstantOfShape" and not any(numpy_helper.to_array(each.t).any() for each in node.attribute)
    }
    for node in nodes:
        for place in range(5, len(node.input)) if node.op_type == "LSTM" else ():
            if node.input[place] in zeros:
                node.input[place] = ""
    needed = {output.name for output in proto.graph.output}
    for node in reversed(list(nodes)):
        if needed.isdisjoint(node.output):
            nodes.remove(node)  # ONNX Runtime would compute it
        else:
            needed.update(node.input)
    return bytes(proto.SerializeToString())


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings; the golden check catches real errors."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


backend = OnnxBackend("onnx", "CPUExecutionProvider")
cuda_backend = OnnxBackend("onnx-cuda", "CUDAExecutionProvider")
