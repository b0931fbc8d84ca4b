"""Options and arguments that several commands have: one spelling and one help text of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _cluster, _recogniser

AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickles; only if you trust them.")]
Asr = Annotated[str | None, typer.Option(help="tiny.en, base, small, a CTranslate2 folder, or none.")]
AudioTrack = Annotated[int, typer.Option(min=0, help="Which of several sound tracks; 0 is the default.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")]
Camera = Annotated[str | None, typer.Option(help="Device index, URL, file, auto or none.")]
Checkpoint = Annotated[str, typer.Option(help="Folder of `mien train` or .safetensors file; else shipped.")]
ClipAsr = Annotated[str, typer.Option(help=_recogniser.HELP)]
ConfigFile = Annotated[Path | None, typer.Option(help="A TOML file as in configs/.")]
Configuration = Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration.")]
Endpoint = Annotated[str, typer.Argument(help="Where it publishes.")]
Engine = Annotated[str | None, typer.Option(help="Inference engine, or auto.")]
FleetName = Annotated[str, typer.Option(help="The fleet's name.")]
Host = Annotated[str | None, typer.Option(help="Address to serve; beyond this machine with keys.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One prediction a line on standard output.")]
Keys = Annotated[str, typer.Option(help="Folder of keys; another machine needs them, see mien keys.")]
KeysFolder = Annotated[str | None, typer.Option(help="Folder of keys, see mien keys.")]
Mic = Annotated[str | None, typer.Option(help="Device index or part of its name, file, auto or none.")]
OneSession = Annotated[str | None, typer.Option(help="One session only.")]
OtherCheckpoint = Annotated[str | None, typer.Option(help="Folder of `mien train`, or a .safetensors file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File to write; else standard output.")]
PagePort = Annotated[int | None, typer.Option(help="Port of the page; 0 takes any.")]
Person = Annotated[str | None, typer.Option(help="A person whom `mien calibrate` has measured at rest.")]
Port = Annotated[int | None, typer.Option(help="First of the four ports.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="One line a second instead of the live view.")]
Ray = Annotated[str, typer.Option(metavar="ADDRESS", help=_cluster.HELP)]
Recording = Annotated[Path, typer.Argument(help="A recording of mien (MCAP).")]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="End after this many seconds.")]
SessionName = Annotated[str | None, typer.Option(help="Name of the session.")]
Summary = Annotated[Path | None, typer.Option(help="Write the run's summary to this JSON file.")]
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]
VideoTrack = Annotated[int, typer.Option(min=0, help="Which of several picture tracks.")]
