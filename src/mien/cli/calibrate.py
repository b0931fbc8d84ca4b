"""`mien calibrate`: measures a person's face and voice at rest, as a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.models.baseline import Rest
    from mien.stream.processes.plan import Session


def command(
    name: Annotated[str, typer.Argument(help="A name for the person.")] = "me",
    config: options.Configuration = None,
    camera: options.Camera = None,
    mic: options.Mic = None,
    clip: Annotated[str | None, typer.Option(help="Measure a file with a calm face and voice instead.")] = None,
    seconds: Annotated[float, typer.Option(min=5, max=300, help="Duration of the measurement.")] = 15.0,
    list_all: Annotated[bool, typer.Option("--list", help="List the people measured.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show what is stored for NAME.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is stored for NAME.")] = False,
    as_json: options.Json = False,
) -> None:
    """Measure a resting face and a calm voice, for `--person NAME`."""
    from mien.errors import ConfigError
    from mien.files import json_text
    from mien.models import baseline

    if list_all + show + delete > 1:
        raise ConfigError("give only one of --list, --show and --delete")
    if list_all:
        _list(as_json)
        return
    baseline.check_name(name)
    if delete:
        baseline.forget(name)
        typer.echo(f"deleted what was stored for {name}", err=True)
        return
    if not show:
        _calibrate(name, config, camera, mic, clip, seconds)
    kept = _summary(name)
    typer.echo(json_text(kept, indent=2) if as_json else "\n".join(f"{key:<7} {value}" for key, value in kept.items()))


def _calibrate(
    name: str, config: Path | None, camera: str | None, mic: str | None, clip: str | None, seconds: float
) -> None:
    from mien.config import load_config
    from mien.models import baseline
    from mien.stream.processes.plan import plan_session
    from mien.stream.sources.address import clip_source

    played = clip_source(clip) if clip else None
    overrides = {
        "video.source": camera or played, "audio.source": mic or played, "clip.fast": bool(clip) or None,
        "text.asr": "none", "person.name": "", "person.adapt": False,
    }  # fmt: skip
    session = plan_session(load_config(config, overrides))
    for note in session.notes:
        typer.echo(note, err=True)
    measured = _measure(session, seconds, is_clip=bool(clip))
    path = baseline.store(name, measured.get("video"), measured.get("audio"))
    typer.echo(f"saved in {path}, readable by you alone; use it with --person {name}", err=True)


def _measure(session: Session, seconds: float, *, is_clip: bool) -> dict[str, Rest]:
    import time

    from mien.cli._terminal import item_progress, make_console
    from mien.stream.capture.rest import Measurement

    with Measurement(session.config, session.workers, seconds) as measurement:
        if not is_clip:
            _instruct(make_console(stderr=True), session.workers, seconds)
        begun_s = time.monotonic()
        measurement.start()
        with item_progress("measuring") as update:
            while not measurement.done:
                passed_s = time.monotonic() - begun_s
                if not is_clip and passed_s > seconds + 2.0:
                    break  # a device that delivers nothing never ends
                update(min(round(passed_s), round(seconds)), round(seconds) + 1)
                time.sleep(0.05)
            update(round(seconds) + 1, round(seconds) + 1)
        measurement.stop()
        return measurement.result()


def _instruct(console: Any, workers: tuple[str, ...], seconds: float) -> None:
    if "video" in workers:
        console.print("Look into the camera with a relaxed face, as if nobody were there.", style="bold")
    if "audio" in workers:
        from mien.models.baseline import SENTENCE

        console.print("Read this aloud in your everyday voice (or any calm sentence in your language):")
        console.print(f"\n  {SENTENCE}\n", style="bold")
    console.print(f"It takes {seconds:.0f} s. Only means of features are saved, no pictures and no sound.", style="dim")


def _list(as_json: bool) -> None:
    from mien.errors import ConfigError
    from mien.files import json_text
    from mien.models import baseline

    found: dict[str, Any] = {}
    for name in baseline.people():
        try:
            found[name] = _summary(name)
        except ConfigError as error:
            found[name] = {"error": str(error)}
    if as_json:
        typer.echo(json_text(found, indent=2))
        return
    for name, kept in found.items():
        facts = kept.get("error") or f"{kept['made']}  face {kept['face']}  voice {kept['voice']}  {kept['state']}"
        typer.echo(f"{name:<20} {facts}")
    if not found:
        typer.echo("nobody has been calibrated yet; run: mien calibrate NAME", err=True)


def _summary(name: str) -> dict[str, Any]:
    """Summary of a stored baseline, and whether it can be used with the shipped weights."""
    from mien.models.baseline import Person, baseline_path
    from mien.stream.modalities.audio import SPEC as AUDIO
    from mien.stream.modalities.vision import SPEC as VISION

    return Person.load(name).summary(VISION.extractor, AUDIO.extractor) | {"path": str(baseline_path(name))}
