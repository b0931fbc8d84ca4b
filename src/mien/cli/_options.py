"""Options and arguments shared by commands: one spelling and one help text each, and what some stand for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mien.config import Config
    from mien.stream.offline.items import ExtractOptions

DEFAULT_ASR = "tiny.en"
_SHARE = 0.2  # of the sound's length: recognition time on a core of 2024, measured on the built-in sample

AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickles; only if you trust them.")]
Asr = Annotated[str | None, typer.Option(help="tiny.en, base, small, a CTranslate2 folder, or none.")]
AudioTrack = Annotated[int, typer.Option(min=0, help="Audio track, if there are several; 0: the default one.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")]
Camera = Annotated[str | None, typer.Option(help="Device index, URL, file, auto or none.")]
Checkpoint = Annotated[str, typer.Option(help="Folder of `mien train` or .safetensors file; default: the shipped one.")]
ClipAsr = Annotated[str, typer.Option(help="Recogniser for clips without text: tiny.en (the default), base, or none.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML configuration.")]
Configuration = Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration.")]
Endpoint = Annotated[str, typer.Argument(help="Address that mien publishes on.")]
Engine = Annotated[str | None, typer.Option(help="Inference engine, or auto.")]
FleetName = Annotated[str, typer.Option(help="The fleet's name.")]
Host = Annotated[str | None, typer.Option(help="Address to bind; beyond this machine only with keys.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one prediction per line as JSON.")]
Keys = Annotated[str, typer.Option(help="Folder of keys, required for another machine; see mien keys.")]
KeysFolder = Annotated[str | None, typer.Option(help="Folder of keys, see mien keys.")]
Mic = Annotated[str | None, typer.Option(help="Device index or part of its name, file, auto or none.")]
OneSession = Annotated[str | None, typer.Option(help="One session only.")]
OtherCheckpoint = Annotated[str | None, typer.Option(help="Folder of `mien train`, or a .safetensors file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: standard output.")]
PagePort = Annotated[int | None, typer.Option(help="Port of the page; 0: any.")]
Person = Annotated[str | None, typer.Option(help="A person measured by `mien calibrate`.")]
Port = Annotated[int | None, typer.Option(help="First of four consecutive ports.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print one line a second instead of the live view.")]
Ray = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster to run on: auto, or HOST:6379. Its nodes need mien, and the files at the same paths.",
    ),
]
Recording = Annotated[Path, typer.Argument(help="A recording of mien (MCAP).")]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="End after this many seconds.")]
SessionName = Annotated[str | None, typer.Option(help="Name of the session.")]
Summary = Annotated[Path | None, typer.Option(help="Write the run's summary to this JSON file.")]
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]
VideoTrack = Annotated[int, typer.Option(min=0, help="Video track, if there are several.")]


_KEYS = {
    "asr": "text.asr", "checkpoint": "inference.checkpoint", "dashboard_port": "dashboard.port",
    "engine": "inference.engine", "host": "bus.host", "keys": "bus.keys", "language": "text.language",
    "metrics": "service.metrics_port", "person": "person.name", "port": "bus.port",
}  # fmt: skip


def configured(path: Path | None, overrides: Mapping[str, Any] | None = None, **given: Any) -> Config:
    """The configuration of a file, with the options given on the command line, and `overrides` by their dotted keys."""
    from mien.config import load_config

    return load_config(path, {_KEYS.get(name, name): value for name, value in given.items()} | dict(overrides or {}))


def choose_recogniser(sources: Sequence[Path], options: ExtractOptions, asr: str, jobs: int) -> ExtractOptions:
    """The options with a recogniser: as requested, or by default for folders of clips, which need one for their words.

    Reports on standard error how many clips will be transcribed, and about how long that takes.

    Args:
        asr: as given on the command line; empty if it was not. jobs: processes; 0 is one per core.
    """
    import msgspec

    from mien.stream.offline.extraction import wordless_sound

    if asr == "none" or "text" not in options.modalities:
        return msgspec.structs.replace(options, asr="")
    count, seconds = wordless_sound(sources, options)
    if not count:
        return msgspec.structs.replace(options, asr=asr)
    chosen = asr or DEFAULT_ASR
    takes_s = seconds * _SHARE / min(jobs or os.cpu_count() or 1, count)
    clips = "1 clip" if count == 1 else f"{count} clips"
    typer.echo(
        f"{clips} without text, {_length(seconds)} of sound: {chosen} recognises the words, which takes about "
        f"{_length(takes_s)} the first time; --asr none leaves words out",
        err=True,
    )
    return msgspec.structs.replace(options, asr=chosen)


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
