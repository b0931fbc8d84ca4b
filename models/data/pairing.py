"""Label-consistent pairing: groups of items of different corpora with the same label.

No corpus at hand has words, voice and face of one moment with labels. Fusion is therefore learned from groups: a
sentence, a voice and a face that were labelled alike, though by different people at different times. A sentence with a
sentiment and no emotion goes with a voice or a face whose emotion has that valence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mien.errors import DataError
from mien.messages import EMOTIONS, NEUTRAL
from mien.models.data.datasets import Sample

# Sentiment that goes with an emotion on the -3 ... 3 scale, where an item has no sentiment of its own. Surprise may be
# either, so that it is evidence for neither.
VALENCE = {
    "neutral": 0.0, "happy": 1.5, "sad": -1.5, "angry": -1.5, "fear": -1.2, "disgust": -1.5, "surprise": 0.0,
}  # fmt: skip
NEUTRAL_BAND = 0.5  # a sentence within it goes with a neutral voice and face


@dataclass(frozen=True, eq=False)
class Group:
    """Samples of different modalities that are seen together, and their common label.

    Attributes:
        members: modality -> the sample whose rows of that modality are used.
        sentiment: -3 ... 3, or None. coarse: it follows from the emotion, or only its sign is known.
        emotions: probability per emotion, or None. emotion: number of its emotion, or None.
    """

    members: dict[str, Sample]
    sentiment: float | None
    coarse: bool
    emotions: tuple[float, ...] | None
    emotion: int | None


def single(sample: Sample, modalities: Sequence[str] | None = None) -> Group:
    """One sample alone, with its own labels, and the valence of its emotion where it has no sentiment."""
    labels = sample.labels
    members = {m: sample for m in sample.tracks if modalities is None or m in modalities}
    sentiment, coarse = labels.sentiment, labels.coarse
    if sentiment is None and sample.emotion is not None and "text" not in members:
        sentiment, coarse = VALENCE[EMOTIONS[sample.emotion]], True
    return Group(members, sentiment, coarse, labels.emotions, sample.emotion)


class Pairing:
    """Draws groups from samples, by default each emotion equally often.

    Args:
        samples: of one split only, so that splits do not mix.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._by_emotion: dict[str, list[list[Sample]]] = {}
        self._texts_by_valence: list[list[Sample]] = [[] for _ in EMOTIONS]
        self._damaged: dict[str, list[list[Sample]]] = {}
        self._emotions: dict[tuple[str, ...], list[int]] = {}
        for sample in samples:
            labels, emotion = sample.labels, sample.emotion
            if emotion is not None:
                by_emotion = self._by_emotion if labels.damage is None else self._damaged
                for modality in sample.tracks:
                    by_emotion.setdefault(modality, [[] for _ in EMOTIONS])[emotion].append(sample)
            elif "text" in sample.tracks and labels.damage is None and labels.sentiment is not None:
                for likely in emotions_of_valence(labels.sentiment):
                    self._texts_by_valence[likely].append(sample)

    def emotions(self, modalities: Sequence[str]) -> list[int]:
        """Emotions of which every one of the modalities has an example."""
        known = self._emotions.get(key := tuple(modalities))  # asked for in each of millions of draws
        if known is None:
            known = [e for e in range(len(EMOTIONS)) if all(self._pool(m, e, False) for m in modalities)]
            self._emotions[key] = known
        return known

    def draw(
        self,
        modalities: Sequence[str],
        random: np.random.Generator,
        by_valence: float = 0.0,
        emotion: int | None = None,
        composed: float = 0.0,
        shares: Mapping[str, float] | None = None,
        conflict: float = 0.0,
        damaged: float = 0.0,
        damaged_wrong: float = 0.5,
        odd: Mapping[str, float] | None = None,
        errors: Mapping[str, float] | None = None,
    ) -> Group:
        """A group over the modalities.

        Args:
            by_valence: how often its sentence is one that has a sentiment instead of an emotion.
            emotion: of the group; drawn evenly when not given.
            composed: how often one member is neutral: people say sad things in an even voice, and happy ones with a
                still face, so that a neutral member is no evidence against the others.
            shares: how often each emotion is drawn, 1 where it is not named.
            conflict: how often one member of three or more shows another emotion: the others are right.
            odd: how often, against the others, each modality is that member; 1 where it is not named.
            damaged: how often a member is a damaged one, `damaged_wrong` of the time of any emotion, and the others
                are right.
            errors: how often each modality shows another emotion: the error rate of its reader on unseen items. On
                items that it was trained on it is right too often for the fusion to learn when not to rely on it.

        Raises:
            DataError: no emotion has examples of all of the modalities.
        """
        if emotion is None:
            possible = self.emotions(modalities)
            if not possible:
                raise DataError(f"no emotion has examples of all of {', '.join(modalities)}; add such corpora")
            weights = np.array([(shares or {}).get(EMOTIONS[e], 1.0) for e in possible])
            emotion = possible[int(random.choice(len(possible), p=weights / weights.sum()))]
        scored = "text" in modalities and bool(self._texts_by_valence[emotion]) and random.random() < by_valence
        members = {}
        for modality in modalities:
            pool = self._pool(modality, emotion, scored)
            members[modality] = pool[int(random.integers(len(pool)))]
        if errors and len(members) > 1:
            members.update(self._wrong(modalities, emotion, random, errors))
        if len(members) > 1:
            chances = {"damaged": damaged, "conflict": conflict, "composed": composed}
            unreliable = self._unreliable(modalities, emotion, random, chances, damaged_wrong, odd or {})
            if not (scored and "text" in unreliable):
                members.update(unreliable)
        own = [s.labels for s in members.values() if s.labels.sentiment is not None and not s.labels.coarse]
        sentiment = own[0].sentiment if own else VALENCE[EMOTIONS[emotion]]
        return Group(members, sentiment, not own, tuple(float(e == emotion) for e in range(len(EMOTIONS))), emotion)

    def _wrong(
        self, modalities: Sequence[str], emotion: int, random: np.random.Generator, errors: Mapping[str, float]
    ) -> dict[str, Sample]:
        """Members of other emotions, often neutral; at least one member stays."""
        chosen = [m for m in modalities if random.random() < errors.get(m, 0.0)]
        if len(chosen) == len(modalities):
            chosen.pop(int(random.integers(len(chosen))))
        wrong = {}
        for modality in chosen:
            others = [e for e in self.emotions([modality]) if e != emotion]
            if not others:
                continue
            other = others[int(random.integers(len(others)))]
            if NEUTRAL in others and random.random() < 0.3:
                other = NEUTRAL
            pool = self._pool(modality, other, False)
            wrong[modality] = pool[int(random.integers(len(pool)))]
        return wrong

    def _unreliable(
        self,
        modalities: Sequence[str],
        emotion: int,
        random: np.random.Generator,
        chances: Mapping[str, float],
        damaged_wrong: float,
        odd: Mapping[str, float],
    ) -> dict[str, Sample]:
        """A member that is damaged, of another emotion, or neutral, if one is drawn."""
        modality = modalities[int(random.integers(len(modalities)))]
        chance = random.random()
        kind = next((name for name in chances if (chance := chance - chances[name]) < 0), None)
        pool: list[Sample] = []
        if kind == "damaged":
            other = emotion if random.random() < 1.0 - damaged_wrong else int(random.integers(len(EMOTIONS)))
            pool = self._damaged.get(modality, [[]] * len(EMOTIONS))[other]
        elif kind == "conflict":
            if odd:
                weights = np.array([odd.get(name, 1.0) for name in modalities])
                modality = modalities[int(random.choice(len(modalities), p=weights / weights.sum()))]
            others = [e for e in self.emotions([modality]) if e != emotion]
            if others and len(modalities) > 2:  # of two that contradict each other, neither is known to be right
                pool = self._pool(modality, others[int(random.integers(len(others)))], False)
        elif kind == "composed" and emotion != NEUTRAL:
            pool = self._pool(modality, NEUTRAL, False)
        return {modality: pool[int(random.integers(len(pool)))]} if pool else {}

    def _pool(self, modality: str, emotion: int, scored: bool) -> list[Sample]:
        if modality == "text" and scored:
            return self._texts_by_valence[emotion]
        return self._by_emotion.get(modality, [[]] * len(EMOTIONS))[emotion]


def emotions_of_valence(sentiment: float) -> list[int]:
    """Emotions that a sentence of this sentiment may go with."""
    if abs(sentiment) < NEUTRAL_BAND:
        return [NEUTRAL]
    sign = np.sign(sentiment)
    return [e for e, name in enumerate(EMOTIONS) if VALENCE[name] * sign > 0]


def paired_set(samples: Sequence[Sample], modalities: Sequence[str], size: int) -> list[Group]:
    """`size` groups for evaluation, always the same; every emotion equally often, as far as they divide."""
    pairing, random = Pairing(samples), np.random.default_rng(0)
    emotions = pairing.emotions(modalities)
    if not emotions:
        raise DataError(f"no emotion has examples of all of {', '.join(modalities)}; name corpora that have them")
    return [pairing.draw(modalities, random, emotion=emotions[k % len(emotions)]) for k in range(size)]
