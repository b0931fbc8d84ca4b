"""`mien extract`: labelled corpora to a dataset of rows."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options
from mien.cli._options import choose_recogniser


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Corpora: CSV of MOSI, MOSEI, SST-5, GoEmotions or MELD, folders of RAVDESS or EmoDB, npz "
                            "of FER2013 or FER+, or a folder of clips with a labels.csv (columns file, text, "
                            "sentiment, emotion, speaker, split, start, end)."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the dataset; a stopped run resumes there.")],
    modalities: Annotated[str, typer.Option(help="What to extract, if an item has it.")] = "text,audio,vision",
    split: Annotated[str, typer.Option(help="Only these splits, such as train,valid.")] = "",
    asr: options.ClipAsr = "",
    audio_copies: Annotated[int, typer.Option(min=0, help="Augmented copies of each training clip's sound.")] = 0,
    partial_texts: Annotated[float, typer.Option(min=0, max=1, help="Share of training texts to add shortened.")] = 0.0,
    checkpoint: Annotated[
        str, typer.Option(help="Folder of `mien train` whose text and face encoders to use; default: the shipped ones.")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Maximum items per corpus and split; 0: all.")] = 0,
    audio_track: options.AudioTrack = 0,
    video_track: options.VideoTrack = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    ray: options.Ray = "",
) -> None:  # fmt: skip
    """Extract features from labelled corpora, with the extractors of the live stream."""
    from mien.cli._terminal import item_progress
    from mien.models.weights import weight_set
    from mien.stream.fleet.tasks import tasks_at
    from mien.stream.offline.extraction import extract
    from mien.stream.offline.items import ExtractOptions

    options = ExtractOptions(
        modalities=tuple(filter(None, modalities.split(","))),
        splits=tuple(filter(None, split.split(","))),
        audio_copies=audio_copies,
        partial_texts=partial_texts,
        limit=limit,
        audio_track=audio_track,
        video_track=video_track,
    )
    options = choose_recogniser(sources, options, asr, jobs)
    with tasks_at(ray) if ray else nullcontext() as spread, item_progress("extracting") as progress:
        manifest = extract(
            sources, out, options, weights=weight_set(checkpoint), jobs=jobs, progress=progress, spread=spread
        )
    for corpus, splits in manifest.counts.items():
        typer.echo(f"{corpus}: " + ", ".join(f"{split} {count}" for split, count in splits.items()))
    if manifest.skipped:
        typer.echo(f"skipped {len(manifest.skipped)}:")
        for skipped in manifest.skipped:
            typer.echo(f"  {skipped.id}: {skipped.reason}")
