"""What a session says of itself to those who keep or show it."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

import msgspec

import mien
from mien.config import Config

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "mediapipe", "faster-whisper", "ctranslate2")


def published_config(config: Config) -> dict[str, Any]:
    """The configuration as it may leave the process: addresses of cameras lose their user names and passwords."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        return _CREDENTIALS.sub("", value) if isinstance(value, str) else value

    tree: dict[str, Any] = clean(msgspec.to_builtins(config))
    return tree


def versions() -> dict[str, str]:
    """Versions of mien, of Python, and of the installed packages that its numbers depend on."""
    found = {"mien": mien.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
