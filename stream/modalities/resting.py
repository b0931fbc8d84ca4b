"""A measurement of a person at rest, from an extractor's raw rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mien.messages import Bool, Float32
from mien.models.baseline import Person, Rest, RunningRest, face_at_rest


class Resting:
    """Collects rows before comparison for a number of seconds; later ones are ignored.

    Args:
        seconds: for how long. rest: computes their mean from values (n, D), valid (n,) and the seconds that they span.

    Attributes:
        passed_s: elapsed seconds.
    """

    def __init__(self, seconds: float, rest: Callable[[Float32, Bool, float], Rest]) -> None:
        self.passed_s = 0.0
        self._seconds, self._rest = seconds, rest
        self._values: list[Float32] = []
        self._valid: list[Bool | list[bool]] = []

    @property
    def left_s(self) -> float:
        """Remaining seconds."""
        return max(self._seconds - self.passed_s, 0.0)

    def add(self, values: Float32, valid: Any, seconds: float) -> None:
        """Add rows (n, D), which of them are valid (n,), and the time that they span."""
        if self.left_s > 0:
            self._values.append(values)
            self._valid.append(np.asarray(valid, np.bool_))
            self.passed_s += seconds

    def result(self) -> Rest:
        """The mean of the collected rows.

        Raises:
            ConfigError: there was too little face or voice.
        """
        if not self._values:
            return self._rest(np.zeros((0, 1), np.float32), np.zeros(0, np.bool_), 0.0)
        return self._rest(np.concatenate(self._values), np.concatenate(self._valid), self.passed_s)


def face_rest(person: Person | None, extractor: str, *, adapt: bool = False) -> Float32 | RunningRest | None:
    """The resting face to subtract from a live one: the person's, with `adapt` a running estimate, or none.

    Raises:
        ConfigError: the person's baseline cannot be used.
    """
    at_rest = person.face(extractor) if person is not None else None
    return RunningRest(extractor) if at_rest is None and adapt else at_rest


def face_resting(seconds: float, extractor: str) -> Resting:
    """Measures a face at rest from the rows of a `VisionExtractor`."""
    return Resting(seconds, lambda values, valid, seen_s: face_at_rest(values, valid, seen_s, extractor))
