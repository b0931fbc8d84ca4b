"""What a session says of itself to those who keep or show it."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

import msgspec

import mien
from mien.config import Config

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")  # up to the last @ before a path: passwords may hold one
_PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "mediapipe", "faster-whisper", "ctranslate2")


def published_config(config: Config) -> dict[str, Any]:
    """The configuration as it may leave the process: no token, no user names and passwords of cameras' addresses."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        return _CREDENTIALS.sub("", value) if isinstance(value, str) else value

    tree: dict[str, Any] = clean(msgspec.to_builtins(config))
    tree["dashboard"].pop("token", None)
    tree.get("dashboard", {}).pop("token", None)
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
