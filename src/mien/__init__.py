"""mien: real-time streaming emotion recognition from face, voice and words.

Subscribing to a running session:

    import mien

    for prediction in mien.subscribe("tcp://127.0.0.1:5560"):
        print(prediction.sentiment, prediction.top_emotion)

`BusError` says that the address is none, or that nothing came within `timeout_s`; `KeysError` that another machine is
asked without keys. Both are a `MienError`, whose text says what to do. A mien that stops and comes back is no error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mien.errors import BusError, KeysError, MienError
from mien.messages import EMOTIONS, FeatureWindow, ModalitySpec, Prediction, Status, Transcript, Window, Word

if TYPE_CHECKING:
    from mien.stream.bus.subscriber import subscribe, subscribe_async

# ONNX Runtime reports to its maker from 1.31 on. It is asked not to before anything of mien can load it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = [
    "EMOTIONS",
    "BusError",
    "FeatureWindow",
    "KeysError",
    "MienError",
    "ModalitySpec",
    "Prediction",
    "Status",
    "Transcript",
    "Window",
    "Word",
    "subscribe",
    "subscribe_async",
]


def __getattr__(name: str) -> Any:
    # The socket library is loaded by the first subscription, not by `import mien`.
    if name in ("subscribe", "subscribe_async"):
        from mien.stream.bus import subscriber

        return getattr(subscriber, name)
    raise AttributeError(f"module 'mien' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
