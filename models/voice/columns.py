"""Column indices of the audio feature vector. Lightweight: imported by the dashboard too."""

from __future__ import annotations

from mien.models.voice.encoder import VOICE_DIM

N_MELS = 64  # log-mel bands, natural logarithm of power
ENERGY, F0, PERIODICITY, ZCR, VAD = range(N_MELS, N_MELS + 5)
STATE = slice(VAD + 1, VAD + 1 + VOICE_DIM)  # of the voice encoder, minus the weighted reference
# The reference (see `mien.models.voice.reference`): its weight, 0 to 1, whether the user provided it, and by how much
# this row is louder and higher, times the weight.
WEIGHT, GIVEN, LOUDER, HIGHER = range(STATE.stop, STATE.stop + 4)
ROW = HIGHER + 1
