"""Damage to media: each kind grows with its strength, and extracted items carry a record of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mien.messages import Float32, UInt8
from mien.models.data.corpora import Corpus, CorpusItem, read_corpus
from mien.models.data.datasets import Labels, RawRows
from mien.stream.offline.damage import (
    DAMAGE,
    UNIT,
    Damaging,
    damage_picture,
    damage_sound,
    damage_words,
    damaged_copies,
    draw_damage,
)

RATE = 16_000
KINDS = {m: list(kinds) for m, kinds in DAMAGE.items()}


def speech(seed: int = 0) -> Float32:
    """Two seconds of buzzing syllables, with pauses, and some hiss up to the highest frequencies."""
    random, t = np.random.default_rng(seed), np.arange(2 * RATE) / RATE
    buzz = np.sum([np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 40)], axis=0)
    envelope = np.clip(np.sin(2 * np.pi * 2 * t), 0, 1)
    sound: Float32 = (0.1 * envelope * (buzz + 0.3 * random.standard_normal(len(t)))).astype(np.float32)
    return sound


def face() -> UInt8:
    y, x = np.mgrid[:48, :48]
    picture: UInt8 = np.clip(128 + 60 * np.sin(x / 2.0) * np.cos(y / 3.0) + 40 * (x > 24), 0, 255).astype(np.uint8)
    return picture


@pytest.mark.parametrize("kind", KINDS["audio"])
def test_sound_differs_more_the_stronger_its_damage(kind: str) -> None:
    sound, voices = speech(), [speech(seed) for seed in (1, 2, 3)]
    likeness = []
    for strength in DAMAGE["audio"][kind]:
        made = damage_sound(sound, kind, strength, np.random.default_rng(5), voices)
        assert made.shape == sound.shape
        assert made.dtype == np.float32
        assert np.abs(made).max() <= 1.0
        spectra = [np.log(np.abs(np.fft.rfft(x.reshape(-1, 320))) + 1e-3) for x in (sound, made)]
        likeness.append(np.corrcoef(spectra[0].ravel(), spectra[1].ravel())[0, 1])
    assert likeness[-1] < 0.99
    assert all(less < more + 0.01 for more, less in itertools.pairwise(likeness)), likeness


@pytest.mark.parametrize("kind", KINDS["vision"])
def test_pictures_differ_more_the_stronger_their_damage(kind: str) -> None:
    picture = face()
    errors = []
    for strength in DAMAGE["vision"][kind]:
        made = damage_picture(picture, kind, strength, np.random.default_rng(5))
        assert made.shape == picture.shape
        assert made.dtype == np.uint8
        errors.append(np.abs(made.astype(float) - picture).mean())
    assert errors[0] > 0
    assert all(before < after for before, after in itertools.pairwise(errors)), errors
    colour = np.repeat(picture[..., None], 3, 2)
    assert damage_picture(colour, kind, DAMAGE["vision"][kind][0], np.random.default_rng(5)).shape == colour.shape


def test_requested_share_of_words_is_wrong() -> None:
    words = [f"Word{k}," for k in range(4000)]
    for rate in DAMAGE["text"]["errors"]:
        made = damage_words(words, rate, ["zebra"], np.random.default_rng(1))
        substituted_or_added = made.count("zebra") / len(words)
        missing = len(words) - sum(word != "zebra" for word in made)
        assert substituted_or_added == pytest.approx(rate * 5 / 6, abs=0.03)
        assert missing / len(words) == pytest.approx(rate * 5 / 6, abs=0.03)
    assert damage_words(["Hello,", "you!"], 0.0, ["x"], np.random.default_rng(0)) == ["hello", "you"]
    assert damage_words(["..."], 1.0, ["x"], np.random.default_rng(0))


def test_every_kind_has_a_unit_and_is_drawn() -> None:
    random = np.random.default_rng(0)
    for modality, kinds in DAMAGE.items():
        drawn = {draw_damage(modality, random) for _ in range(600)}
        assert drawn == {(kind, float(s)) for kind, strengths in kinds.items() for s in strengths}
        assert set(kinds) <= set(UNIT)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="sound"):
        damage_sound(speech(), "blur", 1.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="pictures"):
        damage_picture(face(), "babble", 1.0, np.random.default_rng(0))


class Words:
    """Stands for the extractors of words: a row a word, its length."""

    modalities = ("text",)

    def rows(self, item: CorpusItem, _corpus: Corpus | None = None) -> tuple[dict[str, RawRows], int, str]:
        assert item.text is not None
        words = item.text.split()
        values = np.array([[len(w)] for w in words], np.float32)
        return {"text": RawRows(values, np.ones(len(words), np.bool_), np.arange(len(words)))}, 7, item.text


def test_damaged_copies_are_described_and_deterministic(tmp_path: Path) -> None:
    path = tmp_path / "mosi.csv"
    path.write_text("text,sentiment,split\n" + "\n".join(f"this is sentence number {k},1.0,train" for k in range(40)))
    corpus = read_corpus(path)

    def copies(options: Damaging) -> list[tuple[Labels, str]]:
        made: list[tuple[Labels, dict[str, RawRows]]] = []
        for item in corpus.items:
            labels = Labels(id=item.id, corpus=corpus.name, split=item.split)
            made += damaged_copies(Words(), corpus, item, labels, options)  # type: ignore[arg-type]
        return [(labels, labels.text or "") for labels, _ in made]

    assert copies(Damaging()) == []
    some = copies(Damaging(share=0.4))
    assert 6 <= len(some) <= 26
    assert some == copies(Damaging(share=0.4))
    assert some != copies(Damaging(share=0.4, seed=2))
    whole = copies(Damaging(table=True))
    assert len(whole) == 40 * len(DAMAGE["text"]["errors"])
    for labels, text in [*some, *whole]:
        assert labels.copy
        assert (labels.damage, labels.strength) in [("errors", s) for s in DAMAGE["text"]["errors"]]
        assert labels.id.endswith(f"~errors {labels.strength:g}")
        assert text == text.lower()
    assert msgspec.json.decode(msgspec.json.encode(some[0][0]), type=Labels) == some[0][0]
