"""Voice references: how the same person, microphone and room usually sound.

A speech recogniser's states separate voices, rooms and languages more readily than emotions. Relative to other
speech of the same person they predict emotions of unseen people and corpora better. A reference is the mean of such
speech; rows are compared with it with a weight between 0 (unknown voice) and 1:

- A running reference is the mean of the speech so far. Its weight grows with the amount of speech, and with how much
  the voice has varied as voices do between moods (`mien.models.voice.moods`): an unvarying voice may have been in one
  mood all the time, which the comparison would remove.
- A reference that the user provided is neutral speech, and has weight 1.

Only a fraction of either mean is subtracted (`SHARE`): means have errors, and a part separates emotions better.

Live rows and training rows go through the same `compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mien.errors import ConfigError
from mien.messages import Bool, Float32
from mien.models.voice.columns import ENERGY, F0, GIVEN, HIGHER, LOUDER, ROW, STATE, WEIGHT
from mien.models.voice.moods import Moods, shipped_moods

ROWS_A_SECOND = 50
SHORTEST, LONGEST = 10, 150  # rows of voice per utterance; longer speech is split
HALF_S = 3.0  # seconds of voice at which a running reference has half of its weight
LASTING_S = 300.0  # older speech is dropped after this much newer speech
# Variance between utterances along the mood directions at which it has half of its weight. Ten clips of a speaker
# have 6 to 18 (medians of seven corpora) if their emotions differ, and 2 to 6 if not. Chosen on left-out corpora, so
# that a speaker who keeps one emotion is read at most three points worse than without a reference.
HALF_VARIETY = 5.0
VARIETY_POWER = 4
SHORTEST_GIVEN_S = 3.0
# Chosen on left-out corpora: with three neutral clips per speaker mean UAR is 0.470 (0.55 and 0.65), 0.465 (0.75).
# With more, a running reference gains less than a point, and a lasting mood loses two.
SHARE = 0.65


class Reference(NamedTuple):
    """A voice to compare with.

    `mean` (D,) float32 of raw rows without the reference's own columns; its `weight`; and `given`, to what degree the
    user provided it, 0 to 1.
    """

    mean: Float32
    weight: float
    given: float = 0.0


def compare(values: Float32, reference: Reference | None) -> Float32:
    """Compare rows with a reference.

    Args:
        values: (n, WEIGHT or more), without a reference. Columns from WEIGHT on are ignored.

    Returns:
        (n, ROW): states minus `SHARE` of the weighted reference's, and the last columns set. With None the states are
        unchanged.
    """
    made = np.zeros((len(values), ROW), np.float32)
    made[:, :WEIGHT] = values[:, :WEIGHT]
    if reference is not None and reference.weight > 0:
        weight = np.float32(reference.weight)
        made[:, STATE] -= np.float32(SHARE) * weight * reference.mean[STATE]
        made[:, WEIGHT], made[:, GIVEN] = weight, reference.given
        made[:, LOUDER] = weight * (values[:, ENERGY] - reference.mean[ENERGY])
        made[:, HIGHER] = weight * (values[:, F0] - reference.mean[F0])
    return made


def utterances(values: Float32, valid: Bool) -> list[Float32]:
    """Voiced segments of a recording, (n, D) each, split as by `RunningReference`."""
    found: list[Float32] = []
    begin = None
    for row in range(len(valid) + 1):
        voice = row < len(valid) and bool(valid[row])
        if begin is not None and (not voice or row - begin == LONGEST):
            found.append(values[begin:row])
            begin = None
        if voice and begin is None:
            begin = row
    return [part for part in found if len(part) >= SHORTEST]


class Utterance(NamedTuple):
    """The `mean` (D,) of an utterance's rows, and its length."""

    mean: npt.NDArray[np.float64]
    seconds: float

    @classmethod
    def of(cls, rows: Float32) -> Utterance:
        return cls(rows[:, :WEIGHT].mean(0, dtype=np.float64), len(rows) / ROWS_A_SECOND)


class RunningReference:
    """The mean of the voice so far, ignoring silence and other sounds."""

    def __init__(self) -> None:
        self._moods = shipped_moods()
        self.reset()

    def reset(self) -> None:
        """Start over with a new voice or microphone."""
        self._rows: list[Float32] = []  # of the current utterance
        self._seconds = 0.0
        self._sum = np.zeros(WEIGHT)
        self._squares = np.zeros(self._moods.directions.shape[1])  # of coordinates along the mood directions
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference | None:
        """The reference for the next row; None before the first utterance has ended."""
        return self._reference

    def __call__(self, values: Float32, valid: Bool) -> Float32:
        """Compare the next rows, (n, WEIGHT) and (n,), with the speech before each: (n, ROW)."""
        made = [compare(values[:0], None)]
        begin = 0
        for row in range(len(values)):
            if valid[row]:
                self._rows.append(values[row])
            if self._rows and (not valid[row] or len(self._rows) == LONGEST):
                made.append(compare(values[begin : row + 1], self._reference))
                begin = row + 1
                rows, self._rows = self._rows, []
                if len(rows) >= SHORTEST:
                    self.add(Utterance.of(np.stack(rows)))
        made.append(compare(values[begin:], self._reference))
        return np.concatenate(made)

    def add(self, utterance: Utterance) -> None:
        """Add an utterance of this voice."""
        kept = min(1.0, max(0.0, LASTING_S - utterance.seconds) / max(self._seconds, 1e-9))
        self._seconds = kept * self._seconds + utterance.seconds
        self._sum = kept * self._sum + utterance.seconds * utterance.mean
        self._squares = kept * self._squares + utterance.seconds * self._moods(utterance.mean) ** 2
        mean = self._sum / self._seconds
        variances = self._squares / self._seconds - self._moods(mean) ** 2
        self._reference = Reference(mean.astype(np.float32), _weight(self._seconds, float(variances.sum())))


def running_reference(said: Sequence[Utterance], moods: Moods | None = None) -> Reference | None:
    """The running reference after these utterances, in any order, of less than `LASTING_S` in total.

    Args:
        moods: directions to measure the voice's variety along; default: the shipped ones.
    """
    if not said:
        return None
    seconds = np.array([utterance.seconds for utterance in said])
    means = np.stack([utterance.mean for utterance in said])
    total = float(seconds.sum())
    mean = seconds @ means / total
    moods = moods or shipped_moods()
    variances = seconds @ (moods(means) - moods(mean)) ** 2 / total
    return Reference(mean.astype(np.float32), _weight(total, float(variances.sum())))


def _weight(seconds: float, variety: float) -> float:
    """Weight of a running reference, from the duration of speech and its variance between utterances along moods."""
    varied = (max(0.0, variety) / HALF_VARIETY) ** VARIETY_POWER
    return seconds / (seconds + HALF_S) * varied / (varied + 1.0)


def neutral_reference(mean: Float32) -> Reference:
    """The reference of a voice with a known mean row (D,) of neutral speech."""
    return Reference(mean, 1.0, SHARE)


def given_reference(said: Sequence[Utterance]) -> Reference | None:
    """The reference of weight 1: the mean of these neutral utterances; None if there are none."""
    seconds = sum(utterance.seconds for utterance in said)
    if not seconds:
        return None
    mean = sum((utterance.seconds * utterance.mean for utterance in said), np.zeros(WEIGHT)) / seconds
    return neutral_reference(mean.astype(np.float32))


def measured_reference(values: Float32, valid: Bool) -> tuple[Reference, float]:
    """The reference from a recording of neutral speech, and the seconds of voice in it.

    Args:
        values: raw rows (n, WEIGHT or more) of the recording. valid: (n,), voice active.

    Raises:
        ConfigError: it holds too little voice.
    """
    said = [Utterance.of(rows) for rows in utterances(values, valid)]
    seconds = sum(utterance.seconds for utterance in said)
    reference = given_reference(said)
    if reference is None or seconds < SHORTEST_GIVEN_S:
        raise ConfigError(
            f"{seconds:.1f} s of voice were heard, {SHORTEST_GIVEN_S:.0f} are needed; speak for longer, and nearer to "
            "the microphone"
        )
    return reference, seconds
