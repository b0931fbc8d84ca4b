"""Training and validation batches of the fusion: the kind of each batch, and its items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch, Perturber, plain_batches
from mien.models.data.datasets import Sample, Statistics
from mien.models.data.pairing import Group, Pairing, paired_set, single
from mien.models.data.speakers import Speakers
from mien.models.training.encodings import EncodedItems
from mien.models.training.fusion_settings import OWN, FusionTraining
from mien.models.voice.columns import ROW

SEPARATOR = "+"


class BatchSampler:
    """Draws training batches of every kind that the data permits.

    Attributes:
        kinds: how often a batch is of which kind.
        error_rates: how often a modality in a pair should show another emotion (see `Pairing.draw`).
    """

    def __init__(
        self,
        train: Sequence[Sample],
        specs: Mapping[str, ModalitySpec],
        statistics: Mapping[str, Statistics],
        settings: FusionTraining,
    ) -> None:
        self._settings, self._train = settings, train
        self._encoded: EncodedItems | None = None
        self.error_rates: dict[str, float] = {}
        voices = "audio" in specs and specs["audio"].dim == ROW
        speakers = Speakers(train) if voices else None
        self._perturber = Perturber(specs, statistics, settings.perturbation, speakers)
        self._pairing = Pairing(train)
        self._singles: dict[str, list[tuple[float, list[Sample]]]] = {}
        self._damaged: dict[str, list[Sample]] = {}
        for kind in [*specs, OWN]:
            items = [s for s in train if _is_of_kind(s, kind)]
            self._damaged[kind] = [s for s in items if s.labels.damage is not None]
            pools = _by_corpus([s for s in items if s.labels.damage is None], settings.corpora)
            if pools:
                self._singles[kind] = pools
        self.kinds = {
            kind: share
            for kind, share in settings.kinds.items()
            if share > 0 and (kind in self._singles or can_pair(self._pairing, kind, specs))
        }
        if not self.kinds:
            raise DataError("no kind of training batch can be made; the training split has no labelled rows")

    def encode(self, network: CMMSF, readers: Mapping[str, CMMSF]) -> None:
        """Encode `views` windows of every item now; later batches are drawn from these."""
        random = np.random.default_rng((self._settings.seed, 7))
        self._encoded = EncodedItems(network, self._train, self._perturber, self._settings.views, random, readers)

    def draw(self, random: np.random.Generator) -> tuple[str, Batch]:
        """A random kind, and a batch of it."""
        kind = list(self.kinds)[_choice(list(self.kinds.values()), random)]
        groups = [self._group(kind, random) for _ in range(self._settings.batch)]
        return kind, (self._encoded or self._perturber).batch(groups, random)

    def _group(self, kind: str, random: np.random.Generator) -> Group:
        settings = self._settings
        if kind in self._singles:
            pools = self._singles[kind]
            pool = pools[_choice([share for share, _ in pools], random)][1]
            if self._damaged[kind] and random.random() < settings.damaged_alone:
                pool = self._damaged[kind]
            return single(pool[int(random.integers(len(pool)))], None if kind == OWN else (kind,))
        return self._pairing.draw(
            kind.split(SEPARATOR),
            random,
            settings.by_valence,
            composed=settings.composed,
            shares=settings.pair_emotions,
            conflict=settings.conflict,
            damaged=settings.damaged,
            damaged_wrong=settings.damaged_wrong,
            odd=settings.odd,
            errors=self.error_rates,
        )


def can_pair(pairing: Pairing, kind: str, specs: Mapping[str, ModalitySpec]) -> bool:
    """Whether a kind is a pair, and some emotion has items of all of its modalities."""
    modalities = kind.split(SEPARATOR)
    return len(modalities) > 1 and specs.keys() >= set(modalities) and bool(pairing.emotions(modalities))


def validation_batches(
    valid: Sequence[Sample], specs: Mapping[str, ModalitySpec], settings: FusionTraining
) -> Iterator[tuple[str, list[Batch]]]:
    """Whole windows of each modality alone, and of pairs; deterministic for the same data."""
    random = np.random.default_rng(0)
    for kind in [*specs, OWN]:
        samples = [s for s in valid if _is_of_kind(s, kind)]
        if samples:
            chosen = random.permutation(len(samples))[: settings.valid_items]
            groups = [single(samples[i], None if kind == OWN else (kind,)) for i in chosen]
            yield kind, plain_batches(specs, groups)
    pairing = Pairing(valid)
    for kind in settings.kinds:
        if can_pair(pairing, kind, specs):
            yield kind, plain_batches(specs, paired_set(valid, kind.split(SEPARATOR), settings.valid_items // 3))


def _choice(shares: Sequence[float], random: np.random.Generator) -> int:
    weights = np.array(shares)
    return int(random.choice(len(weights), p=weights / weights.sum()))


def _is_of_kind(sample: Sample, kind: str) -> bool:
    labelled = sample.labels.sentiment is not None or sample.labels.emotions is not None
    return labelled and (len(sample.tracks) > 1 if kind == OWN else kind in sample.tracks)


def _by_corpus(samples: Sequence[Sample], shares: Mapping[str, float]) -> list[tuple[float, list[Sample]]]:
    """Share and samples of every corpus; by the square root of its size if no share is given."""
    pools: dict[str, list[Sample]] = {}
    for sample in samples:
        pools.setdefault(sample.labels.corpus, []).append(sample)
    weighted = [(shares.get(name, math.sqrt(len(pool))), pool) for name, pool in sorted(pools.items())]
    return [(share, pool) for share, pool in weighted if share > 0]
