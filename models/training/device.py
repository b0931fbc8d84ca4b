"""Training device: an NVIDIA GPU in mixed precision, else the CPU.

Initial weights are drawn on the CPU, so that a seed means the same start anywhere; batches are drawn there too, except
those of faces. A GPU's results differ from a CPU's in the last bits, but are reproducible.
"""

from __future__ import annotations

import os

import torch

from mien.errors import ConfigError

AUTO = "auto"


def training_device(name: str = AUTO) -> torch.device:
    """The device of that name; "auto": an NVIDIA GPU if torch finds one, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    found = torch.cuda.is_available()
    if name == AUTO:
        name = "cuda" if found else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name}; known: {AUTO}, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"training runs on cpu or cuda, not on {device.type}")
    if device.type == "cuda":
        if not found:
            raise ConfigError("torch finds no CUDA GPU here; train with --device cpu, or install torch for CUDA")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"there is no {name}; torch finds {torch.cuda.device_count()} GPU(s)")
        # Read when cuBLAS starts. Without it, matrix products differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def device_name(device: torch.device) -> str:
    """The device's name for the notes of weights: "NVIDIA H100 80GB HBM3", or "processor"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there. Without hardware support it is emulated, and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def mixed_precision(device: torch.device, bf16: bool | None = None) -> torch.autocast:
    """Products in bfloat16, sums in float32; None: if that is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device) if bf16 is None else bf16)
