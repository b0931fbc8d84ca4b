"""States of the voice encoder in a stream."""

from __future__ import annotations

import numpy as np
import pytest

from mien.assets import asset_path
from mien.config import AssetsConfig
from mien.messages import Float32
from mien.models.voice.encoder import BLOCK, VOICE_DIM, WINDOW
from mien.stream.speech.voice_states import VoiceStates
from tests.stream.sounds import tone

pytestmark = pytest.mark.assets
BLOCKS = 13


@pytest.fixture(scope="module")
def states() -> VoiceStates:
    return VoiceStates(asset_path("whisper-tiny.en", AssetsConfig()))


@pytest.fixture(scope="module")
def sound() -> Float32:
    noise = np.random.default_rng(3).normal(0, 0.02, BLOCKS * BLOCK).astype(np.float32)
    voice: Float32 = np.concatenate([tone(150.0, BLOCKS * BLOCK / 32_000), tone(260.0, BLOCKS * BLOCK / 32_000)])
    return noise + voice


def test_states_are_causal(states: VoiceStates, sound: Float32) -> None:
    states.reset()
    states.push(sound)
    whole = states.take(np.arange(BLOCKS + 1))
    assert whole.shape == (BLOCKS + 1, VOICE_DIM)
    for number in (0, 1, 5, BLOCKS):
        states.reset()
        states.push(np.concatenate([sound[: number * BLOCK], -sound[: BLOCK - 1]]))
        assert np.array_equal(states.take(np.array([number]))[0], whole[number])


def test_silence_precedes_the_first_sample(states: VoiceStates, sound: Float32) -> None:
    states.reset()
    states.push(sound[: 2 * BLOCK])
    late = states.take(np.array([2]))
    states.reset()
    states.push(np.concatenate([np.zeros(2 * WINDOW, np.float32), sound[: 2 * BLOCK]]))
    assert np.array_equal(states.take(np.array([2 + 2 * WINDOW // BLOCK])), late)


def test_numbers_may_repeat_and_taken_states_are_dropped(states: VoiceStates, sound: Float32) -> None:
    states.reset()
    states.push(sound)
    taken = states.take(np.array([0, 0, 4, 4, 4]))
    assert np.array_equal(taken[0], taken[1])
    assert np.array_equal(states.take(np.array([4, 5]))[0], taken[-1])
    assert states.take(np.zeros(0, np.int64)).shape == (0, VOICE_DIM)
