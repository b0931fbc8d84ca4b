from __future__ import annotations

import numpy as np

from mien.models.voice.columns import STATE, WEIGHT
from mien.models.voice.moods import DIRECTIONS, MOODS, encoded_moods, learn_moods, shipped_moods


def test_the_learned_directions_are_those_of_emotions_and_not_of_voices() -> None:
    random = np.random.default_rng(0)
    width = STATE.stop - STATE.start
    emotions, voices = random.standard_normal((3, width)), 5.0 * random.standard_normal((20, width))
    speakers = [number // 12 for number in range(240)]
    felt = [number % 3 for number in range(240)]
    means = np.zeros((240, WEIGHT))
    means[:, STATE] = voices[speakers] + emotions[felt] + 0.5 * random.standard_normal((240, width))
    along = learn_moods(means, speakers, felt)(means)
    assert along.shape == (240, DIRECTIONS)

    def variance(chosen: list[int]) -> float:
        return float(along[chosen].var(0).sum())

    for speaker in range(20):
        several = [n for n in range(240) if speakers[n] == speaker]
        for emotion in range(3):
            assert variance([n for n in several if felt[n] == emotion]) < 0.5 * variance(several)


def test_the_shipped_directions_are_those_of_the_encoder_in_use() -> None:
    moods = shipped_moods()
    assert moods.directions.shape == (STATE.stop - STATE.start, DIRECTIONS)
    assert np.isfinite(moods.directions).all()
    assert MOODS.read_bytes() == encoded_moods(moods)
