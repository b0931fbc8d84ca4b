"""The interfaces of networks, backends and engines.

A `Network` says how to build a torch module and what goes in and out. A `Backend` (one file each) compiles it to files
in a folder, and loads those into an `Engine`, which maps named arrays to named arrays. Callers use
`mien.engines.selection.open_engine`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mien.errors import EngineError
from mien.install import install_command

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[Any]
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
MAX_BATCH = 512  # rows that GPU engines are built for


# The function that builds a network ("module:function"), and its JSON-compatible arguments.
Origin = tuple[str, dict[str, str | int | None]]


@dataclass(frozen=True)
class Network:
    """A torch module that an engine can compile.

    Attributes:
        name: short, for people and for file names: "cmmsf", "face", "text".
        version: changes with the weights or the code; part of the compile cache's key.
        build: makes the module. Called only on a miss of the compile cache.
        example: one input per argument of `forward`, in its order, with realistic values; floating-point arrays of only
            zeros and ones are treated as masks.
        outputs: names of what `forward` returns, in its order.
        dynamic: per input (or output), which axes may change from call to call, and a name for each.
        origin: how another process builds the same network; None: it is compiled in the process that opens it.
    """

    name: str
    version: str
    build: Callable[[], nn.Module]
    example: dict[str, Array]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    origin: Origin | None = None


class Engine:
    """A network, ready to run.

    Args:
        run: every input by name to every output by name, in float32; None for a class that overrides `infer`.

    Attributes:
        id: backend and precision, for instance "onnx-fp32"; part of every prediction's model id.
        reason: why this engine was chosen, or which one it replaces.
        on_gpu: whether it is a `mien.engines.gpu_engine.GpuEngine`.
    """

    on_gpu = False

    def __init__(
        self, id: str, network: Network, run: Callable[[Mapping[str, Array]], dict[str, Array]] | None = None
    ) -> None:
        self.id, self.network, self._run = id, network, run
        self.reason = ""

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the network once.

        Args:
            inputs: every input by name, with the example's dtype and its shape except for dynamic axes.

        Returns:
            Every output by name; always float32.

        Raises:
            EngineError: the engine could not run these inputs.
        """
        assert self._run is not None
        check_inputs(self.network, inputs)
        try:
            return self._run(inputs)
        except Exception as error:  # libraries raise what they like: out of memory, a lost device, an unsupported shape
            raise EngineError(f"{self.id} failed on network {self.network.name!r}: {error}") from error


class Backend(ABC):
    """One way to compile and run a network. Heavy imports happen inside its methods.

    Attributes:
        name: what `--engine` calls it.
        package: that it needs. extra: of mien, which brings it.
        precisions: supported on this machine, best supported first.
        cached: whether the compiled form is worth keeping on disk.
    """

    name: str
    package: str
    extra: str = "live"
    precisions: tuple[Precision, ...] = ("fp32",)
    cached: bool = True

    def missing(self) -> str | None:
        """What this machine lacks to run it, and how to install that; None if it can run."""
        if importlib.util.find_spec(self.package):
            return None
        return f"{self.package.replace('_', '-')} is not installed: {install_command(self.extra)}"

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Everything besides the network that a compiled form depends on: libraries, device, driver."""

    @abstractmethod
    def compile(self, network: Network, precision: Precision, folder: Path) -> None:
        """Compile `network` into `folder`, which exists and is empty.

        Raises:
            EngineError: the backend cannot compile this network.
        """

    @abstractmethod
    def load(self, network: Network, precision: Precision, folder: Path, threads: int) -> Engine:
        """Open the compiled form that is in `folder`, using at most `threads` CPU threads.

        Raises:
            EngineError: the files cannot be used.
        """


def padded(array: Array) -> Array:
    """Pad to the next power of two by repeating the last row, so that few sizes need contexts, buffers and graphs.

    Batches larger than an engine takes are returned unchanged; the engine rejects them.
    """
    rows = len(array)
    size = 1 << max(rows - 1, 0).bit_length()
    if size == rows or size > MAX_BATCH:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - rows, 0)])


def check_inputs(network: Network, inputs: Mapping[str, Array]) -> None:
    """Reject inputs that do not fit the network.

    Raises:
        EngineError: an input is missing, or has another dtype or number of axes.
    """
    for name, example in network.example.items():
        if name not in inputs:
            raise EngineError(f"network {network.name!r} needs input {name!r}")
        given = inputs[name]
        if given.shape == example.shape and given.dtype == example.dtype:
            continue
        fixed = [axis for axis in range(example.ndim) if axis not in network.dynamic.get(name, {})]
        if (
            given.dtype != example.dtype
            or given.ndim != example.ndim
            or any(given.shape[axis] != example.shape[axis] for axis in fixed)
        ):
            raise EngineError(
                f"input {name!r} of network {network.name!r} is {given.dtype}{given.shape}, "
                f"expected {example.dtype}{example.shape}"
            )
