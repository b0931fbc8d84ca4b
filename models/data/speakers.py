"""Voice references for training and evaluation, made from other clips of the same speaker.

A corpus holds many clips per person, unordered. Any of them can stand for earlier speech.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mien.errors import DataError
from mien.messages import NEUTRAL as NEUTRAL_EMOTION
from mien.models.data.datasets import Sample
from mien.models.voice.moods import Moods, learn_moods
from mien.models.voice.reference import Reference, Utterance, given_reference, running_reference, utterances

AUDIO = "audio"
NONE, RUNNING, LASTING, NEUTRAL, CORPUS = KINDS = ("none", "running", "lasting", "neutral", "corpus")
# How often a training clip gets which kind of reference.
SHARES = {NONE: 0.25, RUNNING: 0.35, LASTING: 0.08, NEUTRAL: 0.25, CORPUS: 0.07}
FEWEST = 8  # clips that a speaker needs for a running reference
AFTER, GIVEN = 10, 3  # clips used to evaluate a running and a neutral reference


class Speakers:
    """Draws references for samples.

    Kinds: "none"; "running", after any clips of the same speaker; "lasting", after clips of the same speaker with the
    sample's emotion; "neutral", from a few neutral clips, as given by a user; "corpus", the mean of all.

    Args:
        moods: see `running_reference`.
    """

    def __init__(self, samples: Sequence[Sample], moods: Moods | None = None) -> None:
        self._moods = moods
        self._said: dict[tuple[str, str], list[Utterance]] = {}
        self._clips: dict[tuple[str, str], list[tuple[str, int | None]]] = {}
        self._corpora: dict[str, Reference | None] = {}
        everything: dict[str, list[Utterance]] = {}
        for sample in samples:
            labels, track = sample.labels, sample.tracks.get(AUDIO)
            if track is None or labels.copy or labels.speaker is None:
                continue
            said = [Utterance.of(rows) for rows in utterances(track.values, track.mask > 0)]
            if said:
                self._said[labels.corpus, labels.id] = said
                self._clips.setdefault((labels.corpus, labels.speaker), []).append((labels.id, sample.emotion))
                everything.setdefault(labels.corpus, []).extend(said)
        for corpus, said in everything.items():
            reference = given_reference(said)
            self._corpora[corpus] = None if reference is None else reference._replace(given=0.0)

    def draw(
        self, sample: Sample, kind: str, random: np.random.Generator, clips: int | None = None
    ) -> Reference | None:
        """A reference for one sample; None for "none", or if its speaker has too little other speech.

        Args:
            clips: number of clips for a running one; by default 1 to 12 at random.
        """
        labels = sample.labels
        if kind == CORPUS:
            return self._corpora.get(labels.corpus)
        own = labels.id.partition("~")[0] if labels.copy else labels.id
        known = self._clips.get((labels.corpus, labels.speaker or ""), [])
        others = [clip for clip in known if clip[0] != own]
        if kind == NEUTRAL:
            chosen, count = [name for name, emotion in others if emotion == NEUTRAL_EMOTION], GIVEN
        else:
            if kind == NONE or len(known) < FEWEST:
                return None
            chosen = [name for name, emotion in others if kind == RUNNING or emotion == sample.emotion]
            count = clips or int(random.integers(1, 13))
        order = random.permutation(len(chosen))[:count]
        said = [utterance for place in order for utterance in self._said[labels.corpus, chosen[place]]]
        return given_reference(said) if kind == NEUTRAL else running_reference(said, self._moods)

    def moods(self) -> Moods:
        """Mood directions, learned from the speakers with several emotions.

        Raises:
            DataError: there is no such speaker.
        """
        means, speakers, emotions = [], [], []
        for speaker, clips in self._clips.items():
            if len({emotion for _, emotion in clips} - {None}) > 1:
                for name, emotion in clips:
                    reference = given_reference(self._said[speaker[0], name])
                    if reference is not None and emotion is not None:
                        means.append(reference.mean)
                        speakers.append(speaker)
                        emotions.append(emotion)
        if not means:
            raise DataError("no speaker has several emotions, so what changes in a voice with them cannot be learned")
        return learn_moods(np.stack(means).astype(np.float64), speakers, emotions)

    def draw_any(self, sample: Sample, random: np.random.Generator) -> Reference | None:
        """A reference of a random kind, weighted by SHARES."""
        kind = random.choice(list(SHARES), p=list(SHARES.values()))
        return self.draw(sample, str(kind), random)
