"""What `mien eval --natural --baseline` prints: people who just talk, with and without their rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from mien.cli import _recogniser


def print_resting(
    checkpoint: Any,
    data: list[Path],
    names: list[str],
    asr: str,
    weights: Any,
    engine: str,
    seconds: float,
    person: str,
    as_json: bool,
) -> None:
    """Predictions for people who just talk, with and without their rest."""
    from mien.cli._progress import item_progress
    from mien.cli._terminal import figure_table, make_console, print_table
    from mien.engines.predictor import Predictor
    from mien.models.baseline import find_person
    from mien.stream.offline.clips import clips_in
    from mien.stream.offline.extractors import Extractors
    from mien.stream.offline.resting import others_than_neutral, resting

    clips = [clip for path in data for clip in clips_in(path)]
    words = asr != "none" and "text" in names
    extractors = Extractors(names, (asr or _recogniser.DEFAULT) if words else "", weights=weights)
    try:
        with item_progress("reading") as progress:
            made = resting(clips, Predictor(checkpoint, engine), extractors, seconds, find_person(person),
                           words=words, progress=progress)  # fmt: skip
    finally:
        extractors.close()
    report = {
        name: each | {how: others_than_neutral(each[how]) for how in ("without", "with")} for name, each in made.items()
    }
    if as_json:
        typer.echo(json.dumps({"checkpoint": checkpoint.id, "modalities": names, "said": made, "resting": report}))
        return
    columns = ("rest of", "seconds", "not neutral without", "not neutral with")
    rows = [(name, each.get("rest"), each["seconds"], each["without"], each["with"]) for name, each in report.items()]
    print_table(make_console(), figure_table("clip", columns, rows))
