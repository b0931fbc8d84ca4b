"""MediaPipe's tasks, without what they do not need.

Its drawing helpers import matplotlib's pyplot when the package is loaded: half of a video worker's start, and memory
for as long as it runs. Nothing here draws with them, so for the moment of the import an empty module stands there.
"""

from __future__ import annotations

import sys
from types import ModuleType

_PLOTS = ("matplotlib", "matplotlib.pyplot")
_stood_in = [] if "matplotlib" in sys.modules else [name for name in _PLOTS if name not in sys.modules]
for _name in _stood_in:
    sys.modules[_name] = ModuleType(_name)
try:
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision
finally:
    for _name in _stood_in:
        del sys.modules[_name]

__all__ = ["BaseOptions", "mp", "vision"]
