from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.errors import ConfigError
from mien.messages import Float32
from mien.models.voice.columns import ENERGY, F0, GIVEN, HIGHER, LOUDER, ROW, STATE, WEIGHT
from mien.models.voice.moods import shipped_moods
from mien.models.voice.reference import (
    LASTING_S,
    SHARE,
    Reference,
    RunningReference,
    Utterance,
    compare,
    given_reference,
    measured_reference,
    running_reference,
    utterances,
)


def speech(count: int, seed: int = 0, vary: float = 1.0) -> tuple[Float32, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Rows of a voice that pauses, is louder or higher in every utterance, and in another mood by `vary`."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, WEIGHT)).astype(np.float32)
    values[:, STATE] *= 0.05
    moods = np.linalg.pinv(shipped_moods().directions)
    values[:, ENERGY : F0 + 1] *= 0.1
    valid = np.zeros(count, np.bool_)
    row = 5
    while row < count:
        length = int(random.integers(15, 60))
        valid[row : row + length] = True
        values[row : row + length, ENERGY] += vary * random.normal(0, 1.5)
        values[row : row + length, F0] += vary * random.normal(0, 0.6)
        values[row : row + length, STATE] += vary * random.normal(0, 3.0, len(moods)) @ moods
        row += length + int(random.integers(1, 30))
    return values, valid


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=40))
def test_any_chunking_gives_the_same_bits(cuts: list[int]) -> None:
    values, valid = speech(400)
    whole = RunningReference()(values, valid)
    running = RunningReference()
    bounds = [0, *sorted(cuts), 400]
    parts = [running(values[a:b], valid[a:b]) for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.shape == (400, ROW)


def test_reference_weight_grows_with_speech() -> None:
    values, valid = speech(6000)
    made = RunningReference()(values, valid)
    end = int(np.flatnonzero(valid[:-1] & ~valid[1:])[0]) + 2
    assert np.array_equal(made[:end, :WEIGHT], values[:end])
    assert not made[:end, WEIGHT:].any()
    weights = made[:, WEIGHT]
    assert 0.5 < weights[-1] < 1.0
    assert weights[3000] > weights[500] > 0
    assert not made[:, GIVEN].any()


def test_silence_does_not_change_a_reference() -> None:
    values, valid = speech(2000)
    running = RunningReference()
    running(values, valid)
    running(values[:1], np.array([False]))  # ends the last utterance
    before = running.reference
    running(values, np.zeros(2000, np.bool_))
    assert before is not None
    assert running.reference is before


def test_constant_voice_keeps_its_mood() -> None:
    lively, flat = (
        running_reference([Utterance.of(r) for r in utterances(*speech(6000, vary=v))]) for v in (1.0, 0.05)
    )
    assert lively is not None
    assert flat is not None
    assert flat.weight < 0.5 * lively.weight


def test_the_same_utterances_give_the_same_reference_at_once_and_one_by_one() -> None:
    parts = [Utterance.of(rows) for rows in utterances(*speech(3000))]
    running = RunningReference()
    for utterance in parts:
        running.add(utterance)
    at_once = running_reference(parts)
    assert at_once is not None
    assert running.reference is not None
    np.testing.assert_allclose(at_once.mean, running.reference.mean, rtol=1e-5, atol=1e-6)
    assert at_once.weight == pytest.approx(running.reference.weight, rel=1e-6)


def test_old_speech_fades() -> None:
    running = RunningReference()
    for level in (0.0, 1.0):
        for _ in range(round(2 * LASTING_S)):
            running.add(Utterance(np.full(WEIGHT, level), 1.0))
    assert running.reference is not None
    assert running.reference.mean[STATE].mean() > 0.8


def test_weighted_reference_is_subtracted() -> None:
    values, _ = speech(20)
    reference = Reference(np.random.default_rng(1).standard_normal(WEIGHT).astype(np.float32), 0.5)
    made = compare(values, reference)
    np.testing.assert_allclose(made[:, STATE], values[:, STATE] - SHARE * 0.5 * reference.mean[STATE], atol=1e-6)
    assert np.array_equal(made[:, : STATE.start], values[:, : STATE.start])
    np.testing.assert_allclose(made[:, LOUDER], 0.5 * (values[:, ENERGY] - reference.mean[ENERGY]), atol=1e-6)
    np.testing.assert_allclose(made[:, HIGHER], 0.5 * (values[:, F0] - reference.mean[F0]), atol=1e-6)
    assert (made[:, WEIGHT] == 0.5).all()
    assert given_reference([]) is None
    assert running_reference([]) is None


def test_a_measured_reference_is_the_mean_of_the_voice() -> None:
    values, valid = speech(600)
    reference, seconds = measured_reference(values, valid)
    assert 3.0 < seconds < 12.0
    assert reference.given == SHARE
    assert reference.weight == 1.0
    expected = np.concatenate(utterances(values, valid)).mean(0)
    np.testing.assert_allclose(reference.mean, expected, atol=1e-5)


def test_too_little_voice_gives_no_reference() -> None:
    values, valid = speech(600)
    valid[60:] = False
    with pytest.raises(ConfigError, match="speak for longer"):
        measured_reference(values, valid)
