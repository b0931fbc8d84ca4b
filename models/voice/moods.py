"""Whether a voice has been in several moods: the spread of its states along the directions that separate emotions.

A voice heard in only one mood must not be compared with its full mean: the comparison would remove the mood. The
variance between utterances along a few directions tells the two cases apart. The directions come from linear
discriminant analysis between the emotions of one speaker (Fisher, 1936), so that voices, rooms and languages do not
count. Lightweight: no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from mien.messages import Float32
from mien.models.voice.columns import STATE
from mien.models.voice.encoder import ENCODER_VERSION

Float64 = npt.NDArray[np.float64]

MOODS = Path(__file__).parent / "moods.json"  # of the shipped voice encoder
DIRECTIONS = 3
RIDGE = 0.1  # fraction of the mean variance, added to every direction


class Moods(NamedTuple):
    """`directions` (384, K) float32, scaled so that a speaker's clips of one emotion have variance 1 along each."""

    directions: Float32

    def __call__(self, means: Float64) -> Float64:
        """Coordinates (..., K) of mean rows (..., WEIGHT or more)."""
        along: Float64 = means[..., STATE] @ self.directions.astype(np.float64)
        return along


class _Stored(msgspec.Struct, frozen=True):
    """The file of the shipped directions, JSON. `directions`: K lists of 384 numbers."""

    encoder: int
    directions: list[list[float]]


@functools.cache
def shipped_moods() -> Moods:
    """The directions of the shipped voice encoder."""
    stored = msgspec.json.decode(MOODS.read_bytes(), type=_Stored)
    assert stored.encoder == ENCODER_VERSION, "scripts/moods.py makes the directions of another encoder"
    return Moods(np.ascontiguousarray(np.array(stored.directions, np.float32).T))


def encoded_moods(moods: Moods) -> bytes:
    """Serialise for `shipped_moods`."""
    directions = [[round(float(value), 5) for value in column] for column in moods.directions.T]
    return msgspec.json.encode(_Stored(ENCODER_VERSION, directions)) + b"\n"


def learn_moods(means: Float64, speakers: Sequence[object], emotions: Sequence[object]) -> Moods:
    """Directions in which one speaker's emotions differ most, relative to the variance within an emotion.

    Args:
        means: (n, WEIGHT or more), the mean row of each clip. speakers, emotions: (n,), one per clip.
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(speakers))}
    speaker = np.array([names[name] for name in speakers])
    moods = {mood: place for place, mood in enumerate(dict.fromkeys(zip(speakers, emotions, strict=True)))}
    mood = np.array([moods[pair] for pair in zip(speakers, emotions, strict=True)])
    from_speaker = _centred(means[:, STATE].astype(np.float64), speaker)
    from_mood = _centred(from_speaker, mood)
    within = from_mood.T @ from_mood / len(means)
    between = from_speaker.T @ from_speaker / len(means) - within
    within += RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    # Generalised eigenproblem (between v = l within v), solved by whitening.
    root = np.linalg.inv(np.linalg.cholesky(within))
    _, vectors = np.linalg.eigh(root @ between @ root.T)
    return Moods((root.T @ vectors[:, ::-1][:, :DIRECTIONS]).astype(np.float32))


def _centred(states: Float64, group: npt.NDArray[np.int64]) -> Float64:
    """States minus their group's mean."""
    sums = np.zeros((group.max() + 1, states.shape[1]))
    np.add.at(sums, group, states)
    centred: Float64 = states - (sums / np.bincount(group)[:, None])[group]
    return centred
