"""Extracts labelled corpora to datasets of rows, with the extractors of the live stream.

Items are split into chunks, one shard per chunk; processes make items, and shards are written atomically, so that an
interrupted run resumes where it stopped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from mien.config import AssetsConfig
from mien.errors import DataError, MienError
from mien.files import make_folder, write_file
from mien.messages import MODALITIES, ModalitySpec
from mien.models.data.corpora import Corpus, CorpusItem, check_splits, corpus_digest, read_corpus
from mien.models.data.dataset_files import (
    PLAN,
    Manifest,
    finish_dataset,
    is_dataset,
    nothing_extracted,
    read_shard,
    write_shard,
)
from mien.models.data.labels import Skipped
from mien.models.data.mmsa import is_pickle
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.offline.extractors import live_specs
from mien.stream.offline.items import ExtractOptions, ItemMaker, MadeItem
from mien.stream.offline.pool import Spread, spread_here
from mien.stream.recording.stretch import is_recording
from mien.stream.sources.clip import open_clip

CHUNK_TEXTS, CHUNK_CLIPS = 512, 32
_MEASURED = 100  # clips sampled to estimate their length


class _Chunk(msgspec.Struct, frozen=True):
    """Items of one corpus that become one shard."""

    source: str
    corpus: str
    ids: tuple[int, ...]  # positions in the corpus
    shard: str


class _Plan(msgspec.Struct, frozen=True):
    specs: tuple[ModalitySpec, ...]
    options: ExtractOptions
    chunks: tuple[_Chunk, ...]
    skipped: tuple[Skipped, ...]
    contents: tuple[str, ...] = ()  # a digest of each corpus; none in plans of mien 0.2


def needed_specs(corpus: Corpus, options: ExtractOptions, weights: WeightSet = SHIPPED) -> dict[str, ModalitySpec]:
    """Specs of the rows of the items selected from a corpus."""
    has = {name for position in _chosen(corpus, options) for name in _modalities_of(corpus.items[position], options)}
    return live_specs(has, weights)


def wordless_sound(sources: Sequence[Path], options: ExtractOptions) -> tuple[int, float]:
    """Number of items in folders of clips that have sound but no text, and their approximate length in seconds.

    Other corpora without texts have scripted sentences, whose words say nothing about the emotion.
    """
    count, seconds = 0, 0.0
    for source in sources:
        if is_dataset(source) or is_pickle(source):
            continue
        corpus = read_corpus(source)
        if not corpus.clips:
            continue
        items = [corpus.items[position] for position in _chosen(corpus, options)]
        items = [i for i in items if i.text is None and i.audio is not None and not is_recording(i.audio)]
        lengths = [_seconds(item) for item in items[:: max(1, len(items) // _MEASURED)]]
        count += len(items)
        seconds += sum(lengths) / max(len(lengths), 1) * len(items)
    return count, seconds


def _seconds(item: CorpusItem) -> float:
    if item.end_s is not None:
        return item.end_s - (item.start_s or 0.0)
    assert item.audio is not None
    try:
        return max(open_clip(item.audio).duration_s - (item.start_s or 0.0), 0.0)
    except MienError:
        return 0.0  # skipped later, with its reason


def extract(
    sources: Sequence[Path],
    out: Path,
    options: ExtractOptions | None = None,
    *,
    assets: AssetsConfig | None = None,
    weights: WeightSet = SHIPPED,
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
    spread: Spread | None = None,
) -> Manifest:
    """Extract corpora into the dataset folder `out`, or resume an interrupted run.

    Args:
        sources: corpora in any layout supported by `read_corpus`.
        weights: of the text and face encoders.
        jobs: processes; 0 is one per core.
        progress: called with items done and total items.
        spread: makes the items, instead of processes here; the dataset is the same.

    Returns:
        The manifest; it lists skipped items, with the reason.

    Raises:
        DataError: nothing to extract, every item was skipped, `out` holds something else, or the disk is full.
        AssetError: a pretrained file is missing and cannot be fetched.
    """
    plan = _make_plan([Path(source).resolve() for source in sources], options or ExtractOptions(), weights)
    make_folder(out, error=DataError)
    _begin(out, plan)
    specs = {spec.name: spec for spec in plan.specs}
    total = sum(len(chunk.ids) for chunk in plan.chunks)
    todo = [chunk for chunk in plan.chunks if not _is_done(out / chunk.shard, plan.specs)]
    done = total - sum(len(chunk.ids) for chunk in todo)
    if progress is not None:
        progress(done, total)
    if spread is None:
        spread = partial(spread_here, min(jobs or os.cpu_count() or 1, len(todo)))
    maker = ItemMaker(plan.options, [spec.name for spec in plan.specs], assets or AssetsConfig(), weights)
    for _ in _write_all(todo, plan, out, maker, spread):
        done += 1
        if progress is not None:
            progress(done, total)
    return finish_dataset(out, specs, [out / chunk.shard for chunk in plan.chunks], plan.skipped)


def _make_plan(sources: Sequence[Path], options: ExtractOptions, weights: WeightSet) -> _Plan:
    chunks: list[_Chunk] = []
    skipped: list[Skipped] = []
    specs: dict[str, ModalitySpec] = {}
    corpora = [read_corpus(source) for source in sources]
    check_splits(corpora)
    for source, corpus in zip(sources, corpora, strict=True):
        skipped += [Skipped(item, reason) for item, reason in corpus.skipped]
        chosen = _chosen(corpus, options)
        specs |= needed_specs(corpus, options, weights)
        size = CHUNK_TEXTS if corpus.items[0].audio is None else CHUNK_CLIPS
        for begin in range(0, len(chosen), size):
            shard = f"shard-{len(chunks):05d}.safetensors"
            chunks.append(_Chunk(str(source), corpus.name, tuple(chosen[begin : begin + size]), shard))
    if not chunks and skipped:
        raise nothing_extracted(skipped)
    if not chunks:
        raise DataError("nothing to extract: no item is in the wanted splits")
    ordered = [specs[name] for name in MODALITIES if name in specs]
    return _Plan(tuple(ordered), options, tuple(chunks), tuple(skipped), tuple(corpus_digest(c) for c in corpora))


def _chosen(corpus: Corpus, options: ExtractOptions) -> list[int]:
    """Positions of the selected items."""
    left_out: set[int] = set()
    if corpus.name in options.train_limits:
        train = [position for position, item in enumerate(corpus.items) if item.split == "train"]
        order = np.random.default_rng(options.seed).permutation(len(train))
        left_out = {train[n] for n in order[options.train_limits[corpus.name] :]}
    counts: Counter[str | None] = Counter()
    chosen = []
    for position, item in enumerate(corpus.items):
        if position in left_out or (options.splits and item.split not in (None, *options.splits)):
            continue
        counts[item.split] += 1
        if not options.limit or counts[item.split] <= options.limit:
            chosen.append(position)
    return chosen


def _modalities_of(item: CorpusItem, options: ExtractOptions) -> set[str]:
    has = set()
    if item.text is not None or (item.audio is not None and (options.asr or is_recording(item.audio))):
        has.add("text")
    if item.audio is not None:
        has.add("audio")
    if item.video is not None or item.image is not None:
        has.add("vision")
    return has & set(options.modalities)


def _begin(out: Path, plan: _Plan) -> None:
    """Write the plan to the folder, or check that the folder has the same plan.

    Raises:
        DataError: the folder holds another plan, or something else.
    """
    if (out / PLAN).is_file():
        try:
            begun = msgspec.json.decode((out / PLAN).read_bytes(), type=_Plan)
        except (OSError, msgspec.DecodeError) as error:
            raise DataError(f"cannot read {out / PLAN}: {error}; choose another folder or remove this one") from error
        if msgspec.structs.replace(begun, contents=begun.contents or plan.contents) != plan:
            raise DataError(
                f"{out} was started from other corpora, options or extractors, or files have changed since; choose "
                "another folder or remove this one"
            )
    elif any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no dataset; choose another folder")
    else:
        write_file(out / PLAN, msgspec.json.encode(plan), private=True)


def _is_done(shard: Path, specs: Sequence[ModalitySpec]) -> bool:
    if not shard.is_file():
        return False
    try:
        read_shard(shard, specs)
    except DataError:
        return False
    return True


def _write_all(todo: list[_Chunk], plan: _Plan, out: Path, maker: ItemMaker, spread: Spread) -> Iterator[None]:
    """Make the items, in any order, and write each shard as soon as all of its items are there. Yields once an item."""
    of: dict[tuple[str, int], list[_Chunk]] = {}  # several where a corpus is given twice
    for chunk in todo:
        for position in chunk.ids:
            of.setdefault((chunk.source, position), []).append(chunk)
    found: dict[str, dict[int, MadeItem]] = {chunk.shard: {} for chunk in todo}
    specs = {spec.name: spec for spec in plan.specs}
    for (source, position), item in spread(list(of), maker):
        for chunk in of[source, position]:
            have = found[chunk.shard]
            have[position] = item
            if len(have) == len(chunk.ids):
                items = [have[each] for each in chunk.ids]
                made = [pair for pairs, _ in items for pair in pairs]
                skipped = [reason for _, reason in items if reason is not None]
                write_shard(out / chunk.shard, specs, made, skipped)
                del found[chunk.shard]
            yield
