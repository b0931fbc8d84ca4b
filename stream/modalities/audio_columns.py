"""Which number of a row of sound is what. Light: for whoever shows rows and does not make them."""

from __future__ import annotations

from mien.models.voice_encoder import VOICE_DIM

N_MELS = 64  # log-mel bands, natural logarithm of power
ENERGY, F0, PERIODICITY, ZCR, VAD = range(N_MELS, N_MELS + 5)
STATE = slice(VAD + 1, VAD + 1 + VOICE_DIM)  # of the voice encoder
