"""Clips as samples, with or without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mien.errors import DataError, RecordingError, SourceError
from mien.models.data.corpora import AUDIO_SUFFIXES, VIDEO_SUFFIXES, CorpusItem, read_corpus
from mien.models.data.datasets import Labels, Sample, make_track
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.offline.extractors import Extractors, live_specs
from mien.stream.offline.items import ExtractOptions

log = logging.getLogger(__name__)


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
    extractors = Extractors(options.modalities, options.asr, weights=weights)
    try:
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
    finally:
        extractors.close()
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
