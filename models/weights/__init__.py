"""Default weights, installed with mien. `MODEL_CARD.md` says what made them and what they may be used for."""
