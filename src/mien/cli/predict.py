"""`mien predict`: offline predictions over clips."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.stream.features.table import FeatureTable
    from mien.stream.offline.clips import ClipPredictor, ClipRows


def command(
    path: Annotated[Path, typer.Argument(help="A clip, or a folder of clips.")],
    checkpoint: options.Checkpoint = "",
    hop: Annotated[float, typer.Option(min=0.02, max=3600, help="Seconds between predictions.")] = 0.5,
    asr: Annotated[str, typer.Option(help="Recogniser: tiny.en, base, a folder, or none.")] = "tiny.en",
    engine: Annotated[str, typer.Option(help="auto, onnx, torch, or any other engine.")] = "auto",
    out: options.Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of CSV.")] = False,
    person: Annotated[str, typer.Option(help="A person measured by `mien calibrate`.")] = "",
    audio_track: options.AudioTrack = 0,
    video_track: options.VideoTrack = 0,
    features: Annotated[Path | None, typer.Option(help="Write the features to this file: .csv or .parquet.")] = None,
    ray: options.Ray = "",
) -> None:  # fmt: skip
    """Predict on clips, with the extractors and the model of the live stream."""
    import csv
    import io

    from mien.cli._terminal import interrupting_signals
    from mien.config import ClipConfig
    from mien.errors import SourceError
    from mien.files import check_target, json_text
    from mien.messages import EMOTIONS
    from mien.models.baseline import find_person
    from mien.stream.features.table import FeatureTable, check_features
    from mien.stream.offline.clips import ClipPredictor, clips_in

    found = clips_in(path)
    if out is not None:
        check_target(out, inputs=found)
    if features is not None:
        check_features(features, [*found, *([] if out is None else [out])])
    tracks = ClipConfig(audio_track=audio_track, video_track=video_track)
    known, with_features = find_person(person), features is not None
    maker = ClipPredictor(checkpoint, engine, asr, hop, tracks, known, features=with_features)
    clips = [str(clip) for clip in found]
    text = io.StringIO()
    gates = [f"gate_{name}" for name in maker.modalities]
    columns = ["clip", "t_s", "sentiment", "emotion", *EMOTIONS, "confidence", *gates, "words", "model"]
    columns.append("uncertain_words")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    if not as_json:
        table.writeheader()
    done = failed = 0
    seen = FeatureTable()
    try:
        with interrupting_signals():
            for made in _in_order(clips, maker, ray, shown=out is not None or not sys.stdout.isatty()):
                done += 1
                if made.error:
                    failed += 1
                    typer.secho(f"skipped: {made.error}", fg=typer.colors.YELLOW, err=True)
                    continue
                for note in made.notes:
                    typer.secho(note, err=True)
                if made.features is not None:
                    seen.extend(made.features)
                for row in made.rows:
                    if as_json:
                        text.write(json_text(row) + "\n")
                    else:
                        table.writerow(row)
                if out is None:
                    typer.echo(text.getvalue().encode(), nl=False)
                    text.seek(0)
                    text.truncate()
    except BaseException:
        if done:
            _save(out, text.getvalue(), features, seen, f"has {done} of {len(clips)} clips")
        raise
    finally:
        maker.close()
    _save(out, text.getvalue(), features, seen)
    if failed == len(clips):
        raise SourceError("no clip could be read")


def _save(out: Path | None, table: str, features: Path | None, seen: FeatureTable, stopped: str = "") -> None:
    """Write both files, and print the predictions if theirs cannot be written, so that they are not lost.

    Args:
        stopped: what they have of the clips, which gives them names of their own; empty if all.
    """
    from mien.errors import FileError
    from mien.files import write_file
    from mien.stream.features.table import PART

    def save(path: Path, write: Callable[[Path], None]) -> None:
        written = path.with_name(path.name + PART) if stopped else path
        write(written)
        if stopped:
            typer.echo(f"stopped: {written} {stopped}", err=True)

    try:
        if out is not None:
            save(out, lambda path: write_file(path, table, private=True))
    except FileError:
        typer.echo(table.encode(), nl=False)
        raise
    finally:
        if features is not None and len(seen):
            save(features, seen.write)


def _in_order(clips: list[str], maker: ClipPredictor, ray: str, *, shown: bool) -> Iterator[ClipRows]:
    """The clips' rows in order, made here or on a cluster; `shown`: with progress, if there are several."""
    from mien.cli._terminal import item_progress
    from mien.stream.fleet.tasks import tasks_at
    from mien.stream.offline.pool import spread_here

    reporting = item_progress("predicting") if shown and len(clips) > 1 else nullcontext(lambda *_: None)
    with tasks_at(ray) if ray else nullcontext(partial(spread_here, 1)) as spread, reporting as progress:
        received: dict[str, ClipRows] = {}
        next_one = 0
        for done, ((path,), made) in enumerate(spread([(clip,) for clip in clips], maker), 1):
            received[path] = made
            progress(done, len(clips))
            while next_one < len(clips) and clips[next_one] in received:
                yield received.pop(clips[next_one])
                next_one += 1
