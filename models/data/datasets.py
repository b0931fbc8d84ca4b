"""Labelled items as rows on the model's time axis, for training and evaluation (files: `dataset_files`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from mien.clock import NS_PER_S
from mien.errors import DataError
from mien.messages import Bool, Float32, Int64, ModalitySpec
from mien.models.data.labels import Skipped
from mien.windowing import average_slots, cut_window, last_rows, slot_ns

WORD_S = 0.35  # assumed duration of a word in text without timestamps


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a dataset.

    Attributes:
        sentiment: -3 ... 3, or None. coarse: only its sign is known.
        emotions: probability per emotion in the order of EMOTIONS, or None.
        agreed: if `emotions` are vote shares: index of the emotion that a majority voted for, -1 for none.
        own: index of the corpus's own label, from before the votes.
        still: its rows show one static moment, such as a photograph.
        text: its words, for evaluation on prefixes of them.
        copy: this is a perturbed, shortened or damaged copy of an item.
        damage, strength: kind and amount of damage (see `mien.stream.offline.damage`); None for none.
    """

    id: str
    corpus: str
    split: str | None = None
    speaker: str | None = None
    sentiment: float | None = None
    coarse: bool = False
    emotions: tuple[float, ...] | None = None
    agreed: int | None = None
    own: int | None = None
    duration_ns: int = 0
    still: bool = False
    text: str | None = None
    copy: bool = False
    damage: str | None = None
    strength: float = 0.0


class Statistics(msgspec.Struct, frozen=True):
    """Mean and standard deviation (D,) of `count` rows."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class RawRows(msgspec.Struct, frozen=True):
    """Rows of one modality of one item: values (n, dim), valid (n,), times_ns (n,) from the item's start."""

    values: Float32
    valid: Bool
    times_ns: Int64


@dataclass(frozen=True, eq=False)
class Track:
    """Rows on the model's time axis from slot 0 on: values (n, dim), zero where `mask` (n,) is zero.

    For words, all rows are observed and `times_ns` are their times; for timestamped rows, row k is slot k.
    """

    values: Float32
    mask: Float32
    times_ns: Int64


@dataclass(frozen=True, eq=False)
class Sample:
    """One item, its labels and its rows per modality. Missing modalities are left out."""

    labels: Labels
    tracks: Mapping[str, Track]

    @property
    def emotion(self) -> int | None:
        """Index of its emotion; None without one, or if it is split between several."""
        shares, agreed = self.labels.emotions, self.labels.agreed
        if agreed is not None:
            return agreed if agreed >= 0 else None
        return int(np.argmax(shares)) if shares is not None and max(shares) > 0.99 else None


@dataclass(eq=False)
class Dataset:
    """Samples, the modalities they are made of, and what was left out."""

    specs: dict[str, ModalitySpec]
    samples: list[Sample]
    skipped: list[Skipped] = field(default_factory=list)

    def split(self, name: str | None) -> list[Sample]:
        """Samples of a split; all of them for None or "all"."""
        return [s for s in self.samples if name in (None, "all") or s.labels.split == name]

    def digest(self) -> str:
        """SHA-256 of labels, rows and specs: equal for equal data, wherever it came from."""
        whole = hashlib.sha256(msgspec.json.encode(self.specs))
        for sample in self.samples:
            whole.update(msgspec.json.encode([sample.labels, list(sample.tracks)]))
            for track in sample.tracks.values():
                for array in (track.values, track.mask, track.times_ns):
                    whole.update(f"{array.shape} {array.dtype}".encode())
                    whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()

    def only(self, names: Sequence[str]) -> Dataset:
        """The rows of these modalities, for samples that have any of them."""
        specs = {name: self.specs[name] for name in names}
        samples = [
            Sample(s.labels, {name: track for name, track in s.tracks.items() if name in specs})
            for s in self.samples
            if any(name in specs for name in s.tracks)
        ]
        return Dataset(specs, samples, self.skipped)


def window(sample: Sample, spec: ModalitySpec, t_end_ns: int, t_start_ns: int = 0) -> tuple[Float32, Float32]:
    """One modality of a sample as the model sees it at `t_end_ns`, ignoring rows before `t_start_ns`.

    Bit-equal to `mien.windowing.place_rows` on the sample's rows.

    Returns:
        features (steps, dim), zero where nothing was observed, and mask (steps,).
    """
    track = sample.tracks.get(spec.name)
    if track is None:
        return np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
    if spec.rate_hz == 0:
        return last_rows(spec, track.values[(track.times_ns <= t_end_ns) & (track.times_ns >= t_start_ns)])
    if sample.labels.still and len(track.values):
        return np.repeat(track.values[:1], spec.steps, 0), np.repeat(track.mask[:1], spec.steps)
    return cut_window(spec, track.values, track.mask, t_end_ns, t_start_ns)


def make_track(spec: ModalitySpec, rows: RawRows) -> Track:
    """Rows on the model's time axis; rows that share a slot are averaged, as `place_rows` does."""
    if spec.rate_hz == 0:
        kept = slice(None) if rows.valid.all() else rows.valid  # a view, if possible: rows may be in a file
        return Track(rows.values[kept], np.ones(np.count_nonzero(rows.valid), np.float32), rows.times_ns[kept])
    slots = rows.times_ns // slot_ns(spec)
    count = int(slots.max()) + 1 if len(slots) else 0
    if count == len(slots) and np.array_equal(slots, np.arange(count)):  # one row per slot: nothing to average
        mask = rows.valid.astype(np.float32)
        values = rows.values * mask[:, None] if rows.values[~rows.valid].any() else rows.values
        return Track(values, mask, rows.times_ns)
    inside = rows.valid & (slots >= 0)
    values, mask = average_slots(rows.values[inside], slots[inside], count)
    return Track(values, mask, np.arange(count, dtype=np.int64) * slot_ns(spec))


def word_times_ns(words: int, duration_ns: int = 0) -> Int64:
    """Times for words without any: spread evenly over the item, or WORD_S apart if it has no duration."""
    step = duration_ns / words if duration_ns and words else WORD_S * NS_PER_S
    return (np.arange(words) * step).astype(np.int64)


def row_statistics(parts: Iterable[Float32]) -> Statistics | None:
    """Statistics of all rows of these arrays (n, D), summed in float64; None without rows."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for rows in parts:
        values = rows.astype(np.float64)
        count += len(values)
        total = total + values.sum(0)
        squares = squares + np.square(values).sum(0)
    if not count:
        return None
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    return Statistics(count, tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()))


def make_statistics(samples: Sequence[Sample], specs: Mapping[str, ModalitySpec]) -> dict[str, Statistics]:
    """Statistics of the samples' observed rows, per modality that occurs."""
    made = {}
    for name in specs:
        tracks = (sample.tracks[name] for sample in samples if name in sample.tracks)
        statistics = row_statistics(track.values[track.mask > 0] for track in tracks)
        if statistics is not None:
            made[name] = statistics
    return made


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """All samples of several datasets.

    Raises:
        DataError: the same modality comes from different extractors.
    """
    specs: dict[str, ModalitySpec] = {}
    for dataset in datasets:
        for name, spec in dataset.specs.items():
            if specs.setdefault(name, spec) != spec:
                raise DataError(
                    f"datasets disagree on modality {name}: {specs[name].extractor or specs[name]} and "
                    f"{spec.extractor or spec}; extract them with one version of mien"
                )
    return Dataset(specs, [s for d in datasets for s in d.samples], [s for d in datasets for s in d.skipped])
