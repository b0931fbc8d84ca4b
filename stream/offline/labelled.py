"""Labelled data of any form, ready to be evaluated: extracted datasets, corpora as they are, MMSA pickles."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.corpora import content_digest, read_corpus
from mien.models.datasets import Dataset, is_dataset, join_datasets, read_dataset
from mien.models.mmsa import read_mmsa
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.offline.extraction import ExtractOptions, extract, needed_specs


def read_labelled(
    sources: Sequence[Path],
    options: ExtractOptions | None = None,
    *,
    allow_pickle: bool = False,
    weights: WeightSet = SHIPPED,
    cache: Path | None = None,
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """All samples of the sources.

    A corpus that is not extracted yet is extracted into mien's cache folder, and found there the next time, as long as
    what is in its files and the extractors stay the same.

    Raises:
        DataError: a source is missing, unknown, or was extracted by other extractors than another one.
    """
    options = options or ExtractOptions()
    datasets = []
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} does not exist; give a corpus, a dataset of `mien extract`, or an MMSA pickle")
        if source.suffix.lower() in (".pkl", ".pickle"):
            datasets.append(read_mmsa(source, allow_pickle))
        elif is_dataset(source):
            datasets.append(read_dataset(source))
        else:
            specs = needed_specs(read_corpus(source), options, weights)
            folder = (cache or user_cache_path("mien") / "datasets") / _key(source, options, list(specs.values()))
            extract([source], folder, options, weights=weights, jobs=jobs, progress=progress)
            datasets.append(read_dataset(folder))
    return join_datasets(datasets)


def _key(source: Path, options: ExtractOptions, specs: Sequence[ModalitySpec]) -> str:
    """A name that changes with what is in the files, what is taken from them, and the extractors."""
    source = source.resolve()
    content = msgspec.json.encode([str(source), content_digest(source), options, specs])
    return f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}"
