"""The seven emotions and their order, which every model, message and table follows."""

from __future__ import annotations

EMOTIONS = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise")

# The CMU-MOSI scale: -3 strongly negative ... +3 strongly positive.
SENTIMENT_MIN, SENTIMENT_MAX = -3.0, 3.0
