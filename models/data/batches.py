"""Collates groups of samples into tensors: windows, augmentation, and targets.

A live window is rarely complete: it opens in mid-sentence, the face is lost, the voice falls silent. Training
windows are therefore cut at either end, and blocks of them masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mien.clock import NS_PER_S
from mien.messages import EMOTIONS, Float32, ModalitySpec
from mien.models.data.datasets import Sample, Statistics, window
from mien.models.data.pairing import Group
from mien.models.data.speakers import AUDIO, Speakers
from mien.models.fusion import Encoding
from mien.models.voice.columns import ROW
from mien.models.voice.reference import compare
from mien.windowing import WINDOW_NS


class Perturbation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Augmentation of training windows. Every number is a probability, per modality of an item.

    Attributes:
        cut_end, cut_start: the window ends before the item does, or opens after it began.
        tail: the window ends after the item.
        block: a run of steps is masked.
        columns: a run of columns is set to its mean.
        noise: everything is replaced by noise, while other modalities are present.
        drop: the modality is missing, while others are present.
        jitter: deviations of white noise added to rows, in standard deviations.
    """

    cut_end: float = 0.35
    cut_start: float = 0.25
    tail: float = 0.3
    block: float = 0.3
    columns: float = 0.5
    noise: float = 0.08
    drop: float = 0.12
    jitter: float = 0.1


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of the modalities that are present, and targets.

    Attributes:
        features: (B, T, D) per modality. mask: (B, T).
        sentiment: (B,), NaN where unknown. coarse: (B,) bool.
        emotions: (B, 7), all zero where unknown.
        own: (B, 7) per modality, the emotions of that member alone; all zero if unknown or fully masked.
        encodings: of windows encoded beforehand; there are no features then. reader_outputs: emotion logits
            (B, 7) and sentiment (B,) of each modality's reader, for distillation.
    """

    features: dict[str, Tensor]
    mask: dict[str, Tensor]
    sentiment: Tensor
    coarse: Tensor
    emotions: Tensor
    own: dict[str, Tensor] = field(default_factory=dict)
    encodings: dict[str, Encoding] = field(default_factory=dict)
    reader_outputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        return Batch(**tree_map(lambda part: part.to(device), vars(self)))


def tensors_of(arrays: Mapping[str, Float32]) -> dict[str, Tensor]:
    """Arrays by name as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def whole_windows(sample: Sample, modalities: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) in ns of the windows that an item is evaluated on: one, or for a long clip one every half window."""
    timed = [m for m in modalities if m in sample.tracks and m != "text"]
    length = sample.labels.duration_ns
    if not timed or sample.labels.still or length <= WINDOW_NS:
        return [(0, length)]
    ends = [*range(WINDOW_NS, length, WINDOW_NS // 2), length]
    return [(end - WINDOW_NS, end) for end in ends]


def plain_batch(
    specs: Mapping[str, ModalitySpec], views: Sequence[tuple[Group, int, int]], modalities: Sequence[str]
) -> Batch:
    """Unperturbed windows. `views`: group, start and end in ns; words use the start, other rows the window's end."""
    features: dict[str, Tensor] = {}
    mask: dict[str, Tensor] = {}
    for name in modalities:
        if not any(name in group.members for group, _, _ in views):
            continue
        rows = [_plain(specs[name], group.members.get(name), start, end) for group, start, end in views]
        features[name] = torch.from_numpy(np.stack([values for values, _ in rows]))
        mask[name] = torch.from_numpy(np.stack([seen for _, seen in rows]))
    groups = [group for group, _, _ in views]
    return Batch(features, mask, *batch_targets(groups), {name: own_emotions(name, groups) for name in features})


def plain_batches(specs: Mapping[str, ModalitySpec], groups: Sequence[Group], size: int = 64) -> list[Batch]:
    """The last whole window of every group, in batches."""
    names = [n for n in specs if any(n in g.members for g in groups)]
    views = [(g, *whole_windows(next(iter(g.members.values())), names)[-1]) for g in groups]
    return [plain_batch(specs, views[k : k + size], names) for k in range(0, len(views), size)]


def _plain(spec: ModalitySpec, sample: Sample | None, start_ns: int, end_ns: int) -> tuple[Float32, Float32]:
    if sample is None:
        return np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
    # Members of a group have different lengths; a view from 0 covers each one entirely.
    length = sample.labels.duration_ns
    return window(sample, spec, length if start_ns == 0 else end_ns, start_ns if spec.rate_hz == 0 else 0)


def batch_targets(groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """Sentiment (n,), whether it is coarse (n,), and emotions (n, 7) of groups."""
    nothing = (0.0,) * len(EMOTIONS)
    return (
        torch.tensor([float("nan") if g.sentiment is None else g.sentiment for g in groups]),
        torch.tensor([g.coarse for g in groups]),
        torch.tensor([g.emotions or nothing for g in groups]),
    )


def own_emotions(name: str, groups: Sequence[Group]) -> Tensor:
    """Emotions (n, 7) of each group's member of one modality, all zero if it is missing or unlabelled."""
    nothing = (0.0,) * len(EMOTIONS)
    return torch.tensor(
        [(g.members[name].labels.emotions or nothing) if name in g.members else nothing for g in groups]
    )


class Perturber:
    """Makes training batches; all randomness comes from the generator passed in.

    Args:
        statistics: of the training rows, to scale noise.
        speakers: references for audio rows; None leaves the rows without.

    Attributes:
        settings: which perturbations to apply.
    """

    def __init__(
        self, specs: Mapping[str, ModalitySpec], statistics: Mapping[str, Statistics], settings: Perturbation,
        speakers: Speakers | None = None,
    ) -> None:  # fmt: skip
        self._specs, self.settings, self._speakers = specs, settings, speakers
        self._mean = {name: np.array(s.mean, np.float32) for name, s in statistics.items()}
        self._std = {name: np.array(s.std, np.float32) for name, s in statistics.items()}

    def batch(self, groups: Sequence[Group], random: np.random.Generator) -> Batch:
        """A training batch over the modalities that occur in the groups."""
        names = [name for name in self._specs if any(name in group.members for group in groups)]
        features = {n: np.zeros((len(groups), self._specs[n].steps, self._specs[n].dim), np.float32) for n in names}
        mask = {n: np.zeros((len(groups), self._specs[n].steps), np.float32) for n in names}
        own = {n: own_emotions(n, groups) for n in names}
        for row, group in enumerate(groups):
            kept = self.kept(group, random)
            for name in group.members:
                if name not in kept:
                    continue
                values, seen = self._window(name, group.members[name], random)
                if len(kept) > 1 and random.random() < self.settings.noise:
                    noise = random.standard_normal(values.shape, np.float32)
                    values, seen = noise * self._std[name] + self._mean[name], np.ones_like(seen)
                    own[name][row] = 0.0
                features[name][row], mask[name][row] = values, seen
        for name in names:
            noise = random.standard_normal(features[name].shape, np.float32)
            features[name] += noise * (self._std[name] * self.settings.jitter)
            features[name] *= mask[name][..., None]
        return Batch(tensors_of(features), tensors_of(mask), *batch_targets(groups), own)

    def noise(self, name: str, count: int, random: np.random.Generator) -> Batch:
        """Windows of one modality that hold only noise on the scale of its rows."""
        spec = self._specs[name]
        noise = random.standard_normal((count, spec.steps, spec.dim), np.float32) * self._std[name] + self._mean[name]
        features = {name: torch.from_numpy(noise.astype(np.float32))}
        unlabelled = [Group({}, None, False, None, None)] * count
        mask = {name: torch.ones(count, spec.steps)}
        return Batch(features, mask, *batch_targets(unlabelled), {name: own_emotions(name, unlabelled)})

    def kept(self, group: Group, random: np.random.Generator) -> list[str]:
        """The modalities of a group that are not dropped; at least one."""
        names = list(group.members)
        kept = [name for name in names if random.random() >= self.settings.drop]
        return kept or [names[int(random.integers(len(names)))]]

    def _window(self, name: str, sample: Sample, random: np.random.Generator) -> tuple[Float32, Float32]:
        spec, chance = self._specs[name], self.settings
        start, end = 0, sample.labels.duration_ns
        if sample.labels.still or spec.rate_hz == 0:
            values, mask = window(sample, spec, end)
            if sample.labels.still:
                mask = self._lasting(mask, random)
        else:
            if end > WINDOW_NS:
                end = int(random.integers(WINDOW_NS, end + 1))
                start = end - WINDOW_NS
            length = end - start
            if random.random() < chance.cut_end:
                end = start + int(length * random.uniform(0.25, 1.0))
            elif random.random() < chance.tail:
                end += int(random.uniform(0.0, 1.5) * NS_PER_S)
            if random.random() < chance.cut_start:
                start += int((min(end, start + length) - start) * random.uniform(0.0, 0.6))
            values, mask = window(sample, spec, end, start)
            if not mask.any():  # only silence is left
                values, mask = window(sample, spec, sample.labels.duration_ns)
        if random.random() < chance.block:
            mask = self._without_block(mask, random)
        if name != "text" and random.random() < chance.columns:
            width = int(random.integers(1, max(2, spec.dim // 6)))
            first = int(random.integers(0, spec.dim - width + 1))
            values = values.copy()
            values[:, first : first + width] = self._mean[name][first : first + width]
        if self._speakers is not None and name == AUDIO and spec.dim == ROW:
            values = compare(values, self._speakers.draw_any(sample, random)) * mask[:, None]
        return values, mask

    @staticmethod
    def _lasting(mask: Float32, random: np.random.Generator) -> Float32:
        """The mask of a still face that may have appeared within the window."""
        if random.random() < 0.5:
            return mask
        mask = mask.copy()
        mask[: int(random.integers(0, len(mask)))] = 0.0
        return mask

    @staticmethod
    def _without_block(mask: Float32, random: np.random.Generator) -> Float32:
        seen = np.flatnonzero(mask)
        if len(seen) < 4:
            return mask
        length = int(random.integers(1, max(2, len(seen) // 2)))
        first = int(random.integers(0, len(seen) - length + 1))
        mask = mask.copy()
        mask[seen[first : first + length]] = 0.0
        return mask
