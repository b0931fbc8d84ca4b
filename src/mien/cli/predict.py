"""`mien predict`: offline predictions over clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    path: Annotated[Path, typer.Argument(help="A clip, or a folder with clips.")],
    checkpoint: Annotated[str, typer.Option(help="Folder of `mien train` or .safetensors file; else shipped.")] = "",
    hop: Annotated[float, typer.Option(min=0.02, help="Seconds between predictions.")] = 0.5,
    asr: Annotated[str, typer.Option(help="Recogniser: tiny.en, base, a folder, or none.")] = "tiny.en",
    engine: Annotated[str, typer.Option(help="auto, onnx, torch, or any other engine.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; else standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of CSV.")] = False,
    reference: Annotated[str, typer.Option(help="Neutral speech of the voice, as `audio.reference` names it.")] = "",
    person: Annotated[str, typer.Option(help="Who it is, as `mien calibrate` measured them at rest.")] = "",
    audio_track: Annotated[int, typer.Option(min=0, help="Which of several sound tracks; 0 is the default.")] = 0,
    video_track: Annotated[int, typer.Option(min=0, help="Which of several picture tracks.")] = 0,
) -> None:  # fmt: skip
    """Predict over clips, with the features and the model of the stream."""
    import csv
    import io
    import json

    from mien.config import ClipConfig
    from mien.engines.predictor import Predictor
    from mien.errors import SourceError
    from mien.files import check_target, write_file
    from mien.messages import EMOTIONS
    from mien.models.baseline import find_person
    from mien.models.checkpoint import check_extractors, load_checkpoint
    from mien.models.weights import weight_set
    from mien.stream.inference.about import with_person
    from mien.stream.offline.clips import clips_in, predict_clip, read_clip
    from mien.stream.offline.extractors import Extractors, live_specs

    if out is not None:
        check_target(out)
    loaded = load_checkpoint(checkpoint)
    weights = weight_set(checkpoint)
    specs = {name: spec for name, spec in live_specs(weights=weights).items() if name in {s.name for s in loaded.specs}}
    check_extractors(loaded, specs.values())
    clips, who = clips_in(path), find_person(person)
    predictor = Predictor(loaded, engine)
    tracks = ClipConfig(audio_track=audio_track, video_track=video_track)
    extractors = Extractors(
        tuple(specs),
        "" if asr == "none" else asr,
        weights=weights,
        reference=reference,
        tracks=tracks,
        person=who,
    )
    text = io.StringIO()
    gates = [f"gate_{name}" for name in predictor.specs]
    columns = ["clip", "t_s", "sentiment", "emotion", *EMOTIONS, "confidence", *gates, "words", "model"]
    columns.append("uncertain_words")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    if not as_json:
        table.writeheader()
    failed = 0
    try:
        for clip in clips:
            try:
                read = read_clip(clip, specs, extractors, asr != "none")
            except SourceError as error:
                failed += 1
                typer.secho(f"skipped: {error}", fg=typer.colors.YELLOW, err=True)
                continue
            for note in read.notes:
                typer.secho(note, err=True)
            for moment in predict_clip(read, predictor, hop):
                row: dict[str, object] = {"clip": read.name, "t_s": round(moment.t_s, 3), "words": moment.words}
                row["uncertain_words"] = moment.uncertain
                said = moment.outputs
                if said is not None:
                    row |= {"sentiment": said.sentiment, "emotion": max(said.emotions, key=said.emotions.__getitem__)}
                    row |= said.emotions
                    row |= {f"gate_{name}": share for name, share in said.gates.items()}
                    row |= {"confidence": said.confidence, "model": with_person(said.model, who.tag if who else "")}
                if as_json:
                    text.write(json.dumps(row) + "\n")
                else:
                    table.writerow(row)
            predictor.forget(read.name)
            if out is None:
                typer.echo(text.getvalue().encode(), nl=False)
                text.seek(0)
                text.truncate()
    finally:
        extractors.close()
    if out is not None:
        write_file(out, text.getvalue(), private=True)
    if failed == len(clips):
        raise SourceError("no clip could be read")
