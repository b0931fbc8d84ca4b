"""The project's dataset: rows of labelled items, as `mien extract` writes them and training and evaluation read them.

A dataset is a folder:

    plan.json                what is being extracted, from what, by which extractors: a resumed run must match it
    shard-00000.safetensors  per modality `m`: `m.values` (rows, dim), `m.valid`, `m.times_ns`, and `m.lengths`,
                             the rows of each item; the items themselves, labels and all, are JSON in its metadata
    manifest.json            written last: specs, counts, statistics of the training rows, and what was skipped

Every file appears whole or not at all, and a folder without a manifest is not a dataset yet. What people said is in it,
so that its files are their owner's alone (mode 0600).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mien.clock import NS_PER_S
from mien.errors import DataError
from mien.files import write_file
from mien.messages import EMOTIONS, Bool, Float32, Int64, ModalitySpec
from mien.windowing import average_slots, last_rows, slot_ns, slot_of

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
WORD_S = 0.35  # how long a word of a text without times is taken to last


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a dataset.

    Attributes:
        sentiment: -3 ... 3, or None. coarse: its sign is known and its strength is not.
        emotions: probability per emotion in the order of EMOTIONS, or None.
        agreed: if `emotions` are shares of votes: number of the emotion that a majority voted for, -1 for none.
        own: number of the emotion that the corpus itself named before it was voted on.
        still: its rows are of one moment that lasts, such as a photograph.
        text: what is said, for evaluation with only a part of it.
        copy: this is a perturbed, shortened or damaged copy of an item.
        damage: what was done to it, see `mien.stream.offline.damage`, and how much: `strength`; None for nothing.
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


class Skipped(msgspec.Struct, frozen=True):
    """An item that could not be used, and why."""

    id: str
    reason: str


class _Contents(msgspec.Struct, frozen=True):
    """The metadata of a shard."""

    items: list[Labels]
    skipped: list[Skipped]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished dataset holds. `counts` is by corpus and split."""

    format: int = FORMAT
    specs: tuple[ModalitySpec, ...]
    shards: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    statistics: dict[str, Statistics]
    skipped: tuple[Skipped, ...] = ()


class RawRows(msgspec.Struct, frozen=True):
    """Rows of one modality of one item: values (n, dim), valid (n,), times_ns (n,) from the item's beginning."""

    values: Float32
    valid: Bool
    times_ns: Int64


@dataclass(frozen=True, eq=False)
class Track:
    """Rows on the model's time axis from slot 0 on: values (n, dim), zero where `mask` (n,) is zero.

    For words, all rows are observed and `times_ns` says when; for instants, row k is slot k.
    """

    values: Float32
    mask: Float32
    times_ns: Int64


@dataclass(frozen=True, eq=False)
class Sample:
    """One item, its labels and its rows per modality. A modality that it lacks is left out."""

    labels: Labels
    tracks: Mapping[str, Track]

    @property
    def emotion(self) -> int | None:
        """Number of its emotion; None for none, or for one that is shared between several."""
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


def window(sample: Sample, spec: ModalitySpec, t_end_ns: int, t_start_ns: int = 0) -> tuple[Float32, Float32]:
    """One modality of a sample as the model sees it at `t_end_ns`, knowing nothing from before `t_start_ns`.

    The same numbers as `mien.windowing.place_rows` gives for the sample's rows.

    Returns:
        features (steps, dim), zero where nothing was observed, and mask (steps,).
    """
    track = sample.tracks.get(spec.name)
    if spec.rate_hz == 0 and track is not None:
        return last_rows(spec, track.values[(track.times_ns <= t_end_ns) & (track.times_ns >= t_start_ns)])
    features, mask = np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
    if track is None or not len(track.values):
        return features, mask
    if sample.labels.still:
        features[:], mask[:] = track.values[0], track.mask[0]
    else:
        last = slot_of(spec, t_end_ns)
        begin = max(last - spec.steps + 1, slot_of(spec, t_start_ns), 0)
        end = min(last + 1, len(track.values))
        if end > begin:
            at = begin - (last - spec.steps + 1)
            features[at : at + end - begin] = track.values[begin:end]
            mask[at : at + end - begin] = track.mask[begin:end]
    return features, mask


def make_track(spec: ModalitySpec, rows: RawRows) -> Track:
    """Rows on the model's time axis; rows that share a slot are averaged, as `place_rows` does."""
    if spec.rate_hz == 0:
        kept = rows.valid
        return Track(rows.values[kept], np.ones(int(kept.sum()), np.float32), rows.times_ns[kept])
    slots = rows.times_ns // slot_ns(spec)
    count = int(slots.max()) + 1 if len(slots) else 0
    if count == len(slots) and np.array_equal(slots, np.arange(count)):  # one row a slot: nothing to average
        mask = rows.valid.astype(np.float32)
        return Track(rows.values * mask[:, None], mask, rows.times_ns)
    inside = rows.valid & (slots >= 0)
    values, mask = average_slots(rows.values[inside], slots[inside], count)
    return Track(values, mask, np.arange(count, dtype=np.int64) * slot_ns(spec))


def word_times_ns(words: int, duration_ns: int = 0) -> Int64:
    """Times for words that come without: spread evenly over the item, or WORD_S each where it has no length."""
    step = duration_ns / words if duration_ns and words else WORD_S * NS_PER_S
    return (np.arange(words) * step).astype(np.int64)


# --- writing -------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    specs: Mapping[str, ModalitySpec],
    items: Sequence[tuple[Labels, Mapping[str, RawRows]]],
    skipped: Sequence[Skipped] = (),
) -> None:
    """Write items and their rows as one shard.

    Raises:
        DataError: rows of the wrong shape or with numbers that are not finite, or a disk that is full.
    """
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for name, spec in specs.items():
        every = [rows.get(name) for _, rows in items]
        for (labels, _), rows in zip(items, every, strict=True):
            if rows is None:
                continue
            if rows.values.ndim != 2 or rows.values.shape[1] != spec.dim or len(rows.values) != len(rows.valid):
                raise DataError(f"{labels.id}: {name} rows are {rows.values.shape}, not (n, {spec.dim})")
            if not np.isfinite(rows.values).all():
                raise DataError(f"{labels.id}: {name} rows hold numbers that are not finite")
        there = [rows for rows in every if rows is not None]
        tensors[f"{name}.values"] = _joined([r.values for r in there], np.zeros((0, spec.dim), np.float32))
        tensors[f"{name}.valid"] = _joined([r.valid for r in there], np.zeros(0, np.bool_))
        tensors[f"{name}.times_ns"] = _joined([r.times_ns for r in there], np.zeros(0, np.int64))
        # -1: the item does not have this modality. 0: it has, and nothing was there.
        tensors[f"{name}.lengths"] = np.array([-1 if r is None else len(r.values) for r in every], np.int64)
    # One entry: safetensors writes several in no order, and the same items are to make the same bytes.
    contents = _Contents([labels for labels, _ in items], list(skipped))
    write_file(path, save(tensors, {"mien": msgspec.json.encode(contents).decode()}), private=True, error=DataError)


def _joined(parts: list[npt.NDArray[np.generic]], empty: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(np.concatenate([empty, *parts]).astype(empty.dtype, copy=False))


def read_shard(
    path: Path, specs: Iterable[ModalitySpec]
) -> tuple[list[tuple[Labels, dict[str, RawRows]]], list[Skipped]]:
    """Items, their rows, and what was skipped while they were made.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with safe_open(path, framework="np") as tensors:
            metadata = tensors.metadata() or {}
            contents = msgspec.json.decode(metadata["mien"], type=_Contents)
            labels, skipped = contents.items, contents.skipped
            rows: list[dict[str, RawRows]] = [{} for _ in labels]
            for spec in specs:
                values, valid, times_ns, lengths = (
                    tensors.get_tensor(f"{spec.name}.{part}") for part in ("values", "valid", "times_ns", "lengths")
                )
                begin = 0
                for each, length in zip(rows, lengths.tolist(), strict=True):
                    if length >= 0:
                        part = slice(begin, begin + length)
                        each[spec.name] = RawRows(values[part], valid[part], times_ns[part])
                        begin += length
    except (SafetensorError, OSError, KeyError, ValueError, msgspec.DecodeError) as error:
        raise DataError(f"shard {path} is damaged ({error}); remove it and run `mien extract` again") from error
    return list(zip(labels, rows, strict=True)), skipped


class NothingExtractedError(DataError):
    """A dataset of nothing but skipped items."""

    def __init__(self, skipped: Sequence[Skipped]) -> None:
        count, first = len(skipped), skipped[0]
        super().__init__(f"nothing was extracted: all {count} items were skipped, first {first.id}: {first.reason}")


def finish_dataset(
    folder: Path, specs: Mapping[str, ModalitySpec], shards: Sequence[Path], left_out: Sequence[Skipped] = ()
) -> Manifest:
    """Sum up all shards and write the manifest: from here on the folder is a dataset.

    Args:
        left_out: items that came into no shard.

    Raises:
        DataError: every item was skipped (NothingExtractedError), or the manifest cannot be written.
    """
    counts: dict[str, Counter[str]] = {}
    sums = {name: _Sums(spec.dim) for name, spec in specs.items()}
    skipped = list(left_out)
    for shard in shards:
        items, unread = read_shard(shard, specs.values())
        skipped += unread
        for labels, rows in items:
            if not labels.copy:
                counts.setdefault(labels.corpus, Counter())[labels.split or "all"] += 1
            if labels.split in ("train", None):
                for name, part in rows.items():
                    sums[name].add(part.values[part.valid])
    if not counts and skipped:
        raise NothingExtractedError(skipped)
    manifest = Manifest(
        specs=tuple(specs.values()),
        shards=tuple(shard.name for shard in shards),
        counts={corpus: dict(splits) for corpus, splits in counts.items()},
        statistics={name: total.statistics() for name, total in sums.items() if total.count},
        skipped=tuple(skipped),
    )
    write_file(
        folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1), private=True, error=DataError
    )
    return manifest


class _Sums:
    """Running sums of valid rows, in float64."""

    def __init__(self, dim: int) -> None:
        self.count, self.total, self.squares = 0, np.zeros(dim), np.zeros(dim)

    def add(self, rows: Float32) -> None:
        values = rows.astype(np.float64)
        self.count += len(values)
        self.total += values.sum(0)
        self.squares += np.square(values).sum(0)

    def statistics(self) -> Statistics:
        mean = self.total / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0.0)
        return Statistics(self.count, tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()))


def make_statistics(samples: Sequence[Sample], specs: Mapping[str, ModalitySpec]) -> dict[str, Statistics]:
    """Statistics of the observed rows of samples, per modality that any of them has."""
    made = {}
    for name, spec in specs.items():
        sums = _Sums(spec.dim)
        for sample in samples:
            track = sample.tracks.get(name)
            if track is not None:
                sums.add(track.values[track.mask > 0])
        if sums.count:
            made[name] = sums.statistics()
    return made


# --- reading -------------------------------------------------------------------------------------------------------


def is_dataset(path: Path) -> bool:
    """Whether a folder is, or is becoming, a dataset of `mien extract`."""
    return path.is_dir() and ((path / MANIFEST).is_file() or (path / PLAN).is_file())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished dataset.

    Raises:
        DataError: the folder is no dataset, or its extraction has not finished.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        if (folder / PLAN).is_file():
            raise DataError(f"{folder} is half extracted; run the same `mien extract` again to finish it") from error
        raise DataError(f"{folder} is no dataset; make one with `mien extract SOURCE -o {folder}`") from error
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"cannot read {folder / MANIFEST}: {error}") from error
    if manifest.format != FORMAT:
        raise DataError(f"{folder} has dataset format {manifest.format}, this mien reads {FORMAT}; extract it again")
    return manifest


def read_dataset(folder: Path) -> Dataset:
    """All samples of a finished dataset.

    Raises:
        DataError: the folder is no finished dataset, or damaged.
    """
    manifest = read_manifest(folder)
    specs = {spec.name: spec for spec in manifest.specs}
    samples = [
        Sample(labels, {name: make_track(specs[name], part) for name, part in rows.items()})
        for labels, rows in _items(folder, manifest)
    ]
    return Dataset(specs, samples, list(manifest.skipped))


def _items(folder: Path, manifest: Manifest) -> Iterator[tuple[Labels, dict[str, RawRows]]]:
    for shard in manifest.shards:
        yield from read_shard(folder / shard, manifest.specs)[0]


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """All samples of several datasets.

    Raises:
        DataError: two of them have rows of different extractors under one name.
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


def emotion_names(shares: Sequence[float]) -> str:
    """A label for people: "happy", or "happy+surprise" for a shared one."""
    return "+".join(name for name, share in zip(EMOTIONS, shares, strict=True) if share > 0)
