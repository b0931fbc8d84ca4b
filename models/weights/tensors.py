"""Tensor files, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mien.errors import MienError
from mien.files import write_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, from any device, as a safetensors file; creates missing folders.

    Args:
        metadata: more than one entry makes the file's bytes vary from run to run.

    Raises:
        FileError: no space or no permission; an existing file is left unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_file(path, save(kept, dict(metadata) if metadata is not None else None))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        whole.update(f"{name} {array.shape} {array.dtype}".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def read_tensors(path: Path, what: str, error: type[MienError]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        what: description of the file, for the message. error: type to raise.

    Raises:
        MienError: of the given type, if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as cause:
        raise error(f"cannot read {what} {path}: {cause}") from cause
