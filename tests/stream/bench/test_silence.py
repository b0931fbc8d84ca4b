"""Without speech no word is committed; the same measure finds words in speech."""

from __future__ import annotations

import numpy as np
import pytest

from mien.stream.bench.silence import SOUNDS, count_words, measure_silence, synthesised
from tests.stream.sounds import spoken


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_made_from_their_seed_at_several_levels(name: str) -> None:
    sound = synthesised(name, 25.0, 3)
    assert sound.shape == (400_000,)
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all()
    assert np.array_equal(sound, synthesised(name, 25.0, 3))
    loud, soft = (np.abs(part).max() for part in (sound[:160_000], sound[160_000:320_000]))
    assert loud <= 10 ** (-12 / 20) + 1e-6
    assert name == "silence" or (loud > 2 * soft > 0)


@pytest.mark.assets
def test_no_word_is_committed_without_speech() -> None:
    figures = measure_silence(5.0)
    assert list(figures) == list(SOUNDS)
    assert {name: sound["text"] for name, sound in figures.items()} == dict.fromkeys(SOUNDS, "")


@pytest.mark.assets
def test_words_are_counted_where_there_is_speech() -> None:
    counted = count_words(spoken("The weather is lovely today."))
    assert counted["words"] == 5
    assert "lovely" in counted["text"]
