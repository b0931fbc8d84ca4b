"""`mien run`: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    config: options.Configuration = None,
    camera: options.Camera = None,
    mic: options.Mic = None,
    clip: Annotated[str | None, typer.Option(help="Play a file's picture and sound instead of the devices.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Play the clip as fast as possible; no frame is dropped.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Repeat the clip.")] = False,
    asr: options.Asr = None,
    language: Annotated[str | None, typer.Option(help="Spoken language, such as en.")] = None,
    checkpoint: options.OtherCheckpoint = None,
    engine: options.Engine = None,
    port: options.Port = None,
    session: options.SessionName = None,
    person: options.Person = None,
    seconds: options.Seconds = None,
    as_json: options.JsonLines = False,
    quiet: options.Quiet = False,
    record: Annotated[Path | None, typer.Option(help="Record features and predictions to this file (MCAP).")] = None,
    video: Annotated[bool, typer.Option("--video", help="With --record: record pictures too.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="With --record: record sound too.")] = False,
    metrics: Annotated[int | None, typer.Option(min=1, max=65535, help="Port for /metrics and /health.")] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log events as JSON lines on standard error.")] = False,
    summary: options.Summary = None,
) -> None:
    """Capture, infer and publish predictions, until Ctrl-C or the clip's end."""
    from mien.cli._session import output_of, run_session
    from mien.stream.processes.plan import plan_session
    from mien.stream.sources.address import clip_source

    played = clip_source(clip) if clip else None
    sources = {"video.source": camera or played, "audio.source": mic or played}
    switches = {
        "clip.fast": fast, "clip.loop": loop, "service.log": log_json and "json",
        "audio.share": record is not None and audio,
    }  # fmt: skip
    settings = options.configured(
        config, sources | {key: value or None for key, value in switches.items()}, asr=asr, language=language,
        checkpoint=checkpoint, engine=engine, person=person, port=port, session=session, metrics=metrics,
    )  # fmt: skip
    run_session(
        plan_session(settings),
        badge="CLIP" if clip else "LIVE",
        seconds=seconds,
        output=output_of(as_json=as_json, quiet=quiet),
        summary_path=summary,
        record=record,
        video=video,
        audio=audio,
    )
