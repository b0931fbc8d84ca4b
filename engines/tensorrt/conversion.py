"""From a `Network` to a TensorRT network and its serialised engine, whole or not at all.

torch.export, torch-tensorrt's lowering and converters, TensorRT's builder. Needs no GPU: a builder of TensorRT for RTX
makes engines ahead of time for any named architecture, which is also how every part of this file is tested.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.engines.base import MAX_BATCH, Network, Precision
from mien.engines.torch_eager import build_module
from mien.errors import EngineError
from mien.install import install_command

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

MAX_LENGTH = 128  # of any other axis that varies
NARROW = 16  # columns of a layer below which half precision gains nothing
MINIMUM_BLOCK = 1


@dataclass(frozen=True)
class Coverage:
    """How much of a network TensorRT takes.

    Attributes:
        operations: calls in the lowered graph, by operator.
        unsupported: operators without a converter for at least one of their calls.
        engines: partitions that TensorRT would run. torch_blocks: partitions that would fall back to PyTorch.
    """

    operations: dict[str, int]
    unsupported: tuple[str, ...]
    engines: int
    torch_blocks: int

    @property
    def is_whole(self) -> bool:
        """Whether all of it runs as one engine."""
        return not self.unsupported and self.engines == 1 and self.torch_blocks == 0


def export(network: Network, precision: Precision, batch: int | None) -> torch.export.ExportedProgram:
    """The network as torch.export captures it, one `aten.lstm.input` for each `nn.LSTM`.

    Args:
        batch: a fixed number of rows; None leaves the network's dynamic axes open, 1 to `MAX_BATCH` rows.

    Raises:
        EngineError: it cannot be captured.
    """
    import torch

    module = build_module(network)
    if precision == "fp16":
        module = _halved(module)
    arguments, shapes = _arguments(network, batch)
    dynamic: Any = shapes if batch is None else None
    if dynamic is not None and _takes_varargs(module):
        dynamic = (shapes,)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise EngineError(f"torch.export cannot capture network {network.name!r}: {error}") from error


def lower(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The captured graph in the operators that converters exist for."""
    import_torch_tensorrt()
    from torch_tensorrt.dynamo import _compiler

    settings = _settings()
    with quiet():
        program = _compiler.pre_export_lowering(program, settings)
        program = program.run_decompositions(_compiler.get_decompositions(False, False))
        graph: fx.GraphModule = _compiler.post_lowering(program.module(), settings)
    return graph


@dataclass(frozen=True)
class Definition:
    """A network as TensorRT knows it.

    Attributes:
        interpreter: torch-tensorrt's, which owns builder and network.
        inputs: TensorRT's names of the inputs, in the order of `Network.example`; some may be without effect, and then
            the TensorRT network does not have them.
        outputs: TensorRT's names of the outputs, in the order of `Network.outputs`.
    """

    interpreter: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def net(self) -> Any:
        """The `tensorrt.INetworkDefinition`."""
        return self.interpreter.ctx.net


def define(network: Network, graph: fx.GraphModule) -> Definition:
    """Run the converters.

    Raises:
        EngineError: a part of the graph would fall back to PyTorch.
    """
    coverage, partitioned = partition(graph)
    if not coverage.is_whole:
        raise EngineError(
            f"TensorRT cannot run all of network {network.name!r}: {coverage.engines} engines and "
            f"{coverage.torch_blocks} blocks of PyTorch; no converter for {', '.join(coverage.unsupported) or 'none'}"
        )
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    (block,) = (module for _, module in partitioned.named_children())
    inputs = tuple(str(node.target) for node in graph.graph.nodes if node.op == "placeholder")
    with quiet():
        specs = _input_specs(network, dict(zip(inputs, network.example, strict=True)), block)
        interpreter = TRTInterpreter(block, specs, compilation_settings=_settings())
        interpreter._construct_trt_network_def()
    return Definition(interpreter, inputs, _outputs_of(partitioned))


def capability_of(target_sm: str) -> Any:
    """TensorRT's name of a compute capability, for instance "8.9".

    Raises:
        EngineError: torch-tensorrt cannot be used, or its TensorRT cannot build for such a GPU.
    """
    import_torch_tensorrt()
    import tensorrt

    capabilities = getattr(tensorrt, "ComputeCapability", None)
    capability = getattr(capabilities, f"SM{target_sm.replace('.', '')}", None)
    if capability is None:
        known = sorted(int(name[2:]) for name in dir(capabilities) if name.startswith("SM"))
        raise EngineError(
            f"this TensorRT cannot build for SM {target_sm}, only for {', '.join(str(sm / 10) for sm in known)}"
            if known
            else "this TensorRT builds for the GPU of this machine only; mien[tensorrt-rtx] builds for others"
        )
    return capability


def serialise(definition: Definition, capability: Any = None) -> bytes:
    """Build the engine.

    Args:
        capability: what `capability_of` gives; None for the GPU of this machine.

    Raises:
        EngineError: TensorRT cannot build it.
    """
    interpreter = definition.interpreter
    options = interpreter._populate_trt_builder_config()
    if capability is not None:
        options.num_compute_capabilities = 1
        options.set_compute_capability(capability, 0)
    with quiet():
        plan = interpreter.builder.build_serialized_network(interpreter.ctx.net, options)
    if plan is None:
        raise EngineError("TensorRT could not build the engine; its own log says why")
    return bytes(plan)


def _input_specs(network: Network, names: dict[str, str], block: Any) -> list[Any]:
    """The inputs of a block with their sizes; tuned for the example's where a size is open.

    Args:
        names: TensorRT's name of an input -> the network's.
    """
    torch_tensorrt = import_torch_tensorrt()
    from torch_tensorrt.dynamo import partitioning

    specs = []
    for spec in partitioning.construct_submodule_inputs(block):
        if isinstance(spec.shape, dict):
            # torch-tensorrt reads ranges off the graph, and its lowering narrows them: to 15 rows, for one.
            name = names[spec.name]
            shape, axes = network.example[name].shape, network.dynamic[name]
            least = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
            most = tuple(_largest(axis, size) if axis in axes else size for axis, size in enumerate(shape))
            spec = torch_tensorrt.Input(
                min_shape=least, opt_shape=shape, max_shape=most, dtype=spec.dtype, name=spec.name
            )
        specs.append(spec)
    return specs


def _largest(axis: int, size: int) -> int:
    """The largest size of an axis that varies, where the example has `size`."""
    return MAX_BATCH if axis == 0 else max(MAX_LENGTH, size)


def _outputs_of(partitioned: fx.GraphModule) -> tuple[str, ...]:
    """The block returns its results in an order of its own; the graph around it says which is which."""
    (output,) = (node for node in partitioned.graph.nodes if node.op == "output")
    results = output.args[0]
    results = results if isinstance(results, tuple | list) else (results,)
    # A block with one result is called for that result; one with several for a tuple that is then taken apart.
    return tuple(f"output{node.args[1] if node.op == 'call_function' else 0}" for node in results)


def partition(graph: fx.GraphModule) -> tuple[Coverage, Any]:
    """Ask every converter whether it takes its node, and cut the graph up as torch-tensorrt would."""
    import_torch_tensorrt()
    from torch_tensorrt.dynamo import partitioning
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS

    settings = _settings()
    DYNAMO_CONVERTERS.set_compilation_settings(settings)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    unsupported = sorted({str(node.target) for node in calls if node not in DYNAMO_CONVERTERS})
    with quiet():
        supported, total = partitioning.get_graph_converter_support(graph, settings.torch_executed_ops)
        partitioned, _ = partitioning.fast_partition(
            graph, min_block_size=MINIMUM_BLOCK, torch_executed_ops=set(), skip_fusion=supported == total
        )
    names = [name for name, _ in partitioned.named_children()]
    engines = sum("_run_on_acc" in name for name in names)
    operations = dict(collections.Counter(str(node.target) for node in calls))
    return Coverage(operations, tuple(unsupported), engines, len(names) - engines), partitioned


def _settings() -> Any:
    torch_tensorrt = import_torch_tensorrt()
    from torch_tensorrt.dynamo._settings import CompilationSettings

    return CompilationSettings(
        min_block_size=MINIMUM_BLOCK,
        require_full_compilation=True,
        device=torch_tensorrt.Device(gpu_id=0),
        # TF32 keeps 10 bits of a number: not what fp32 promises.
        disable_tf32=True,
    )


def _arguments(network: Network, batch: int | None) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """Example arguments, and for each which of its axes may vary between which sizes."""
    import torch

    dims: dict[str, Any] = {}
    arguments, shapes = [], []
    for name, array in network.example.items():
        varying = {}
        for axis, symbol in network.dynamic.get(name, {}).items():
            dim = torch.export.Dim(symbol, min=1, max=_largest(axis, array.shape[axis]))
            varying[axis] = dims.setdefault(symbol, dim)
            if batch is None:
                # A size of one would be captured as always one.
                array = np.take(array, np.arange(max(array.shape[axis], 2)) % array.shape[axis], axis)
        if batch is not None:
            array = np.repeat(array[:1], batch, 0)
        arguments.append(torch.from_numpy(np.ascontiguousarray(array)))
        shapes.append(varying)
    return tuple(arguments), tuple(shapes)


def _takes_varargs(module: nn.Module) -> bool:
    import inspect

    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _halved(module: nn.Module) -> nn.Module:
    """Half precision in the layers that multiply matrices, float32 between them.

    TensorRT 11 computes in the types that the graph says. The rest is cheap, and costs twice the error in half:
    features lie far apart before they are normalised. So do the heads: what they round, decisions add up.
    """
    from torch import nn

    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and child.out_features < NARROW:
            continue
        if isinstance(child, nn.Linear | nn.Conv1d | nn.Conv2d | nn.LSTM):
            setattr(module, name, _half_layer(child))
        else:
            _halved(child)
    return module


def _half_layer(layer: nn.Module) -> nn.Module:
    import torch
    from torch import nn

    class HalfLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.half()

        def forward(self, x: torch.Tensor, *states: None) -> Any:
            result = self.layer(x.half(), *states)
            return result.float() if isinstance(result, torch.Tensor) else (result[0].float(), result[1])

    return HalfLayer()


@cache
def import_torch_tensorrt() -> Any:
    """torch-tensorrt, with mien's converter registered; also where there is no GPU.

    Raises:
        EngineError: it is not installed, or does not fit this torch.
    """
    import torch

    try:
        with _import_without_gpu() if not torch.cuda.is_available() else contextlib.nullcontext(), quiet():
            import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"torch-tensorrt cannot be used ({error}): {install_command('tensorrt')}; for RTX cards the extra "
            "tensorrt-rtx"
        ) from error
    from mien.engines.tensorrt.lstm import register_converter

    register_converter()
    return torch_tensorrt


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch-tensorrt and torch.export; failures are raised."""
    names = ("torch_tensorrt", "torch.export", "torch_tensorrt [TensorRT Conversion Context]", "torch._export")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _import_without_gpu() -> Iterator[None]:
    """Fake the GPU queries that torch-tensorrt makes while it is imported and converts.

    Nothing that converts, builds or computes is replaced. A torch without CUDA also lacks the library that
    torch-tensorrt's own C++ runtime is linked with, so that runtime is hidden; mien runs engines itself.
    """
    import torch

    properties = types.SimpleNamespace(name="none", major=8, minor=9, total_memory=16 << 30, multi_processor_count=128)
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda *_: (properties.major, properties.minor)
    cuda.get_device_properties = lambda *_: properties
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.mem_get_info = lambda *_: (properties.total_memory, properties.total_memory)
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = types.SimpleNamespace  # type: ignore[misc,assignment]
    is_file = os.path.isfile
    if torch.version.cuda is None:
        os.path.isfile = lambda path: "torchtrt" not in os.path.basename(str(path)) and is_file(path)
    try:
        yield
    finally:
        os.path.isfile = is_file
