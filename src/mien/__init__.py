"""mien: real-time streaming emotion recognition from face, voice and words.

Subscribing to a running session:

    import mien

    for prediction in mien.subscribe("tcp://127.0.0.1:5560"):
        print(prediction.sentiment, prediction.top_emotion)

Recognising your own frames and sound, or a file, in this process:

    with mien.Recognizer() as recognizer:
        recognizer.frame(bgr, t)
        print(recognizer.predict().top_emotion)
    mien.analyze("talk.mp4").to_pandas()

`BusError` means an invalid address, or that nothing arrived within `timeout_s`; `KeysError` that keys for another
machine are missing. Both are a `MienError`, whose text says what to do. A mien that stops and restarts is no error.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from mien.errors import (
    AssetError,
    BusError,
    CheckpointError,
    ConfigError,
    EngineError,
    InputError,
    KeysError,
    MienError,
    SourceError,
)
from mien.messages import EMOTIONS, FeatureWindow, ModalitySpec, Prediction, Status, Transcript, Word

if TYPE_CHECKING:
    from mien.stream.bus.subscriber import subscribe, subscribe_async
    from mien.stream.direct.analysis import Analysis, analyze
    from mien.stream.direct.recognizer import Frame, Recognizer, Sound

# ONNX Runtime sends telemetry from 1.31 on. Switched off before any part of mien can load it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
__all__ = [
    "EMOTIONS",
    "Analysis",
    "AssetError",
    "BusError",
    "CheckpointError",
    "ConfigError",
    "EngineError",
    "FeatureWindow",
    "Frame",
    "InputError",
    "KeysError",
    "MienError",
    "ModalitySpec",
    "Prediction",
    "Recognizer",
    "Sound",
    "SourceError",
    "Status",
    "Transcript",
    "Word",
    "analyze",
    "subscribe",
    "subscribe_async",
]

# Loaded on first use: a subscriber does not have a recogniser's libraries, and may not need sockets.
_LATER = {
    "Analysis": "mien.stream.direct.analysis",
    "Frame": "mien.stream.direct.recognizer",
    "Recognizer": "mien.stream.direct.recognizer",
    "Sound": "mien.stream.direct.recognizer",
    "analyze": "mien.stream.direct.analysis",
    "subscribe": "mien.stream.bus.subscriber",
    "subscribe_async": "mien.stream.bus.subscriber",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'mien' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LATER[name]), name)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "mien":
            raise
        from mien.install import install_command

        raise ConfigError(f"mien.{name} needs the package {error.name}; {install_command('live')}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
