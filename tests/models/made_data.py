"""A small made dataset in which every emotion shows in every modality, each in items of its own."""

from __future__ import annotations

import msgspec
import numpy as np

from mien.clock import NS_PER_S
from mien.messages import EMOTIONS, ModalitySpec
from mien.models.data.datasets import Dataset, Labels, RawRows, Sample, Track, make_track, word_times_ns

SPECS = {
    "text": ModalitySpec("text", 10, 0, 20, snapshot=True, extractor="t"),
    "audio": ModalitySpec("audio", 9, 10, 50, extractor="a"),
    "vision": ModalitySpec("vision", 8, 10, 50, extractor="v"),
}


def made_dataset(count: int = 12, seed: int = 0, noise: float = 1.0, valid_from: str = "valid") -> Dataset:
    """`count` items of each emotion, modality and split. Texts have a sentiment in half of the items."""
    random = np.random.default_rng(seed)
    samples = []
    for split in ("train", valid_from):
        for emotion in range(len(EMOTIONS)):
            shares = tuple(float(e == emotion) for e in range(len(EMOTIONS)))
            for number in range(count):
                for name, spec in SPECS.items():
                    rows = int(random.integers(4, 30))
                    values = random.standard_normal((rows, spec.dim)).astype(np.float32) * noise
                    values[:, emotion] += 2.0
                    times = np.arange(rows, dtype=np.int64) * (NS_PER_S // 10) if spec.rate_hz else word_times_ns(rows)
                    scored = name == "text" and number % 2 == 0
                    labels = Labels(
                        id=f"{split}-{name}-{emotion}-{number}",
                        corpus=f"made-{name}",
                        split=split,
                        sentiment=(emotion - 3) * 0.9 if scored else None,
                        emotions=shares,
                        duration_ns=int(times[-1]) + 1,
                        text=" ".join(["word"] * rows) if name == "text" else None,
                    )
                    track = make_track(spec, RawRows(values, np.ones(rows, np.bool_), times))
                    samples.append(Sample(labels, {name: track}))
    return Dataset(dict(SPECS), samples)


STRENGTHS = (1.0, 3.0, 8.0)


def with_damage(dataset: Dataset, seed: int = 1) -> Dataset:
    """The same and, of every item, copies in which more and more noise lies over what it shows."""
    random = np.random.default_rng(seed)
    copies = []
    for sample in dataset.samples:
        (name, track), *_ = sample.tracks.items()
        for strength in STRENGTHS:
            noise = random.standard_normal(track.values.shape).astype(np.float32) * strength
            labels = msgspec.structs.replace(
                sample.labels, id=f"{sample.labels.id}~noise {strength:g}", copy=True, damage="noise", strength=strength
            )
            spoilt = Track((track.values + noise) * track.mask[:, None], track.mask, track.times_ns)
            copies.append(Sample(labels, {name: spoilt}))
    return Dataset(dataset.specs, [*dataset.samples, *copies])
