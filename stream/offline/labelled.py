"""Labelled data in any format as one dataset: extracted datasets, corpora, MMSA pickles."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from mien.config import AssetsConfig
from mien.engines.cache import remove_oldest
from mien.errors import DataError
from mien.files import make_folder
from mien.messages import ModalitySpec
from mien.models.data.corpora import Corpus, check_splits, corpus_digest, read_corpus
from mien.models.data.dataset_files import PLAN, is_dataset, read_dataset
from mien.models.data.datasets import Dataset, join_datasets
from mien.models.data.mmsa import is_pickle, read_mmsa
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.offline.extraction import extract, needed_specs
from mien.stream.offline.items import ExtractOptions
from mien.stream.offline.pool import Spread

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
