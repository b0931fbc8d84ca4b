"""Importing torch-tensorrt: also without a GPU, and without its log output."""

from __future__ import annotations

import contextlib
import logging
import os
import types
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

from mien.errors import EngineError
from mien.install import install_command


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
