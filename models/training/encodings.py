"""Items encoded once, for training and fitting on top of frozen encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch, Perturber, batch_targets, own_emotions, plain_batches
from mien.models.data.datasets import Sample
from mien.models.data.pairing import Group, single
from mien.models.fusion import Encoding

BATCH = 64
NOISES = 64  # noise windows per modality


class EncodedModality:
    """Every item of one modality as a whole window, as `views` training windows, and noise windows.

    Attributes:
        hidden: (views + 1) n windows and NOISES of noise, (N, S, d) in half precision. observed: (N, S).
        logits: (N, 7), sentiment: (N,), outputs of `reader`, or of the network, on each window alone.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: CMMSF,
        name: str,
        samples: Sequence[Sample],
        perturber: Perturber,
        views: int,
        random: np.random.Generator,
        reader: CMMSF | None = None,
    ) -> None:
        device = next(network.parameters()).device
        groups = [single(sample, (name,)) for sample in samples]
        parts = [groups[k : k + BATCH] for k in range(0, len(groups), BATCH)]
        hidden, observed, logits, sentiment = [], [], [], []

        def add(batches: Iterable[Batch]) -> None:
            for batch in batches:
                on = batch.to(device)
                encoding = network.encode(name, on.features[name], on.mask[name])
                fused = (reader or network).raw_of({name: encoding})
                hidden.append(encoding.hidden.half().cpu())
                observed.append(encoding.observed.cpu())
                logits.append(fused.logits.cpu())
                sentiment.append(fused.sentiment.cpu())

        network.eval()
        specs = {spec.name: spec for spec in network.specs}
        add(plain_batches(specs, groups, BATCH))
        for _ in range(views):
            add(perturber.batch(part, random) for part in parts)
        add([perturber.noise(name, NOISES, random)])
        self.hidden, self.observed = torch.cat(hidden), torch.cat(observed)
        self.logits, self.sentiment = torch.cat(logits), torch.cat(sentiment)
        self._count, self._views = len(samples), views
        self._positions = {id(sample): position for position, sample in enumerate(samples)}

    def position(self, sample: Sample, random: np.random.Generator) -> int:
        """Index of one of an item's windows; the whole one in a third of cases."""
        view = 0 if random.random() < 1 / 3 or not self._views else 1 + int(random.integers(self._views))
        return self._positions[id(sample)] + self._count * view

    def noise(self, random: np.random.Generator) -> int:
        return len(self.hidden) - NOISES + int(random.integers(NOISES))


class EncodedItems:
    """Batches of encoded windows.

    Args:
        readers: by modality, whose outputs come with the batches; the network's own if there is none.
    """

    def __init__(
        self,
        network: CMMSF,
        samples: Sequence[Sample],
        perturber: Perturber,
        views: int,
        random: np.random.Generator,
        readers: Mapping[str, CMMSF] | None = None,
    ) -> None:
        self._perturber = perturber
        self.modalities = {
            name: EncodedModality(network, name, ours, perturber, views, random, (readers or {}).get(name))
            for name in network.names
            if (ours := [s for s in samples if name in s.tracks])
        }

    def batch(self, groups: Sequence[Group], random: np.random.Generator, noise: float | None = None) -> Batch:
        """A training batch over the groups' modalities, some of them dropped, some replaced by noise.

        Args:
            noise: share of members that are; default: the perturber's.
        """
        noise = self._perturber.settings.noise if noise is None else noise
        at = {name: np.full(len(groups), -1) for name in self.modalities if any(name in g.members for g in groups)}
        own = {name: own_emotions(name, groups) for name in at}
        for row, group in enumerate(groups):
            kept = self._perturber.kept(group, random)
            for name in kept:
                at[name][row] = self.modalities[name].position(group.members[name], random)
                if len(kept) > 1 and random.random() < noise:
                    at[name][row] = self.modalities[name].noise(random)
                    own[name][row] = 0.0
        encodings: dict[str, Encoding] = {}
        outputs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, rows in at.items():
            index, encoded = torch.from_numpy(np.maximum(rows, 0)), torch.from_numpy(rows >= 0).float()
            kept_rows = self.modalities[name]
            encodings[name] = Encoding(
                kept_rows.hidden[index].float() * encoded[:, None, None],
                kept_rows.observed[index] * encoded[:, None],
            )
            outputs[name] = kept_rows.logits[index], kept_rows.sentiment[index]
        return Batch({}, {}, *batch_targets(groups), own, encodings, outputs)
