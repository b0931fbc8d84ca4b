"""A session's description of itself, for recorders and viewers."""

from __future__ import annotations

import functools
import platform
import re
from typing import Any

import msgspec

import mien
from mien.config import Config
from mien.install import installed_versions
from mien.models.baseline import Person

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")  # up to the last @ before a path: passwords may contain one
_PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "mediapipe", "faster-whisper", "ctranslate2")


def published_config(config: Config) -> dict[str, Any]:
    """The configuration without secrets: no token, no user names or passwords in cameras' addresses."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        return _CREDENTIALS.sub("", value) if isinstance(value, str) else value

    tree: dict[str, Any] = clean(msgspec.to_builtins(config))
    tree.get("dashboard", {}).pop("token", None)
    return tree


def person_tag(config: Config, *, replayed: bool = False) -> str:
    """The tag in predictions for the person whose rest is the baseline; empty without one.

    If capture runs on other machines, the baseline is stored there and only the name is known here. In a replay the
    baseline was applied when recording, and `person.name` is the recorded tag.

    Raises:
        ConfigError: the person's baseline cannot be used.
    """
    name, workers = config.person.name, config.bus.workers
    if name and not replayed and not (workers.video or workers.audio):
        name = Person.load(name).tag
    return "+".join(filter(None, (name, "adapt" if config.person.adapt and not replayed else "")))


def with_person(model: str, tag: str) -> str:
    """The model `CHECKPOINT/ENGINE` with a tag: `CHECKPOINT+TAG/ENGINE`."""
    checkpoint, slash, engine = model.partition("/")
    return f"{checkpoint}+{tag}{slash}{engine}" if tag else model


def tag_of(model: str) -> str:
    """The tag that `with_person` added; empty without one."""
    return model.partition("/")[0].partition("+")[2]


@functools.cache  # a pool publishes them for hundreds of sessions, and looking them up takes milliseconds
def versions() -> dict[str, str]:
    """Versions of mien, of Python, and of the installed packages that its numbers depend on."""
    found = {"mien": mien.__version__, "python": platform.python_version(), "machine": platform.machine()}
    return found | installed_versions(_PACKAGES)
