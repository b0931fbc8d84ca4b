"""Data in any format as samples: extracted datasets, corpora, MMSA pickles, and clips without labels."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from mien.config import AssetsConfig
from mien.engines.cache import remove_oldest
from mien.errors import DataError, RecordingError, SourceError
from mien.files import make_folder
from mien.messages import ModalitySpec
from mien.models.data.corpora import (
    AUDIO_SUFFIXES,
    VIDEO_SUFFIXES,
    Corpus,
    CorpusItem,
    check_splits,
    corpus_digest,
    read_corpus,
)
from mien.models.data.dataset_files import PLAN, is_dataset, read_dataset
from mien.models.data.datasets import Dataset, Labels, Sample, join_datasets, make_track
from mien.models.data.mmsa import is_pickle, read_mmsa
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.offline.extraction import extract, needed_specs
from mien.stream.offline.extractors import Extractors, live_specs
from mien.stream.offline.items import ExtractOptions
from mien.stream.offline.pool import Spread

log = logging.getLogger(__name__)

MOST_DATASETS, MOST_BYTES = 64, 2 << 30  # kept in the user's cache folder, most recently used first


def read_labelled(
    sources: Sequence[Path],
    options: ExtractOptions | None = None,
    *,
    allow_pickle: bool = False,
    assets: AssetsConfig | None = None,
    weights: WeightSet = SHIPPED,
    cache: Path | None = None,
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
    spread: Spread | None = None,
) -> Dataset:
    """All samples of the sources.

    A corpus is extracted into `cache`, or the user's cache folder, and read from there next time if its files and the
    extractors are unchanged. The user's cache folder is bounded and private.

    Args:
        assets, jobs, progress, spread: as for `extract`.

    Raises:
        DataError: a source is missing or unknown, or sources were extracted by different extractors.
    """
    options = options or ExtractOptions()
    datasets = []
    corpora: list[Corpus] = []
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} does not exist; give a corpus, a dataset of `mien extract`, or an MMSA pickle")
        if is_pickle(source):
            datasets.append(read_mmsa(source, allow_pickle))
        elif is_dataset(source):
            datasets.append(read_dataset(source))
        else:
            corpora.append(corpus := read_corpus(source))
            check_splits(corpora)
            specs = needed_specs(corpus, options, weights)
            folder = (cache or _open_cache()) / _key(source, corpus, options, list(specs.values()))
            extract(
                [source], folder, options, assets=assets, weights=weights, jobs=jobs, progress=progress, spread=spread
            )
            datasets.append(read_dataset(folder))
            if cache is None:
                _keep_newest(folder)
    return join_datasets(datasets)


def cache_folder() -> Path:
    """The cache folder of extracted corpora."""
    return user_cache_path("mien") / "datasets"


def _open_cache() -> Path:
    folder = cache_folder()
    make_folder(folder)
    # It holds people's words and looks: private, regardless of its files' modes.
    folder.chmod(0o700)
    return folder


def _keep_newest(folder: Path) -> None:
    """Mark a dataset as used, and evict the least recently used ones beyond the bound."""
    with contextlib.suppress(OSError):
        os.utime(folder / PLAN)
    remove_oldest(cache_folder(), PLAN, MOST_DATASETS, MOST_BYTES)


def _key(source: Path, corpus: Corpus, options: ExtractOptions, specs: Sequence[ModalitySpec]) -> str:
    """A name that depends on the files' contents, the options and the extractors."""
    source = source.resolve()
    content = msgspec.json.encode([str(source), corpus_digest(corpus), options, specs])
    return f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}"


def read_clips(
    sources: Sequence[Path],
    options: ExtractOptions,
    *,
    weights: WeightSet = SHIPPED,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Clips as samples, with or without labels.

    Args:
        sources: clips, folders of clips, or folders of clips with labels.
        options: `limit` clips of each source are taken, evenly spread; `asr` recognises their words.

    Raises:
        DataError: a source is missing, or none has a readable clip.
    """
    items: list[tuple[str, CorpusItem]] = []
    for source in sources:
        found = _clips(source)
        step = max(1, len(found) // options.limit) if options.limit else 1
        items += [(source.stem, item) for item in found[::step][: options.limit or None]]
    samples = []
    with contextlib.closing(Extractors(options.modalities, options.asr, weights=weights)) as extractors:
        for done, (name, item) in enumerate(items, start=1):
            try:
                rows, duration_ns, text = extractors.rows(item)
            except (SourceError, DataError, RecordingError) as error:
                log.warning("%s is left out: %s", item.id, error)
                continue
            labels = Labels(id=item.id, corpus=name, duration_ns=duration_ns, text=text, speaker=item.speaker)
            specs = live_specs(rows, weights)
            samples.append(Sample(labels, {m: make_track(specs[m], made) for m, made in rows.items()}))
            if progress is not None:
                progress(done, len(items))
    if not samples:
        raise DataError(f"no readable clip in {', '.join(map(str, sources))}")
    return samples


def _clips(source: Path) -> list[CorpusItem]:
    if not source.exists():
        raise DataError(f"{source} does not exist; give clips or folders of them")
    if source.is_dir() and (source / "labels.csv").is_file():
        return [item for item in read_corpus(source).items if item.audio is not None]
    known = AUDIO_SUFFIXES | VIDEO_SUFFIXES
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [
        CorpusItem(file.stem, audio=file, video=file if file.suffix.lower() in VIDEO_SUFFIXES else None)
        for file in files
        if file.suffix.lower() in known
    ]
