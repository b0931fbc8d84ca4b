"""Default weights, installed with mien. `MODEL_CARD.md` says what they were trained on and what they may be used for."""
