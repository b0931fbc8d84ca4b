"""`mien replay`: a recording, as if it were live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    path: options.Recording,
    speed: Annotated[float, typer.Option(min=0, help="1: recorded pace; 0: as fast as possible.")] = 1.0,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint to use instead of the recorded one.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine to use instead of the recorded one.")] = None,
    record: Annotated[Path | None, typer.Option("--record", "-o", help="Record the replay to this file.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration of the bus.")] = None,
    port: options.Port = None,
    as_json: options.JsonLines = False,
    quiet: options.Quiet = False,
    summary: options.Summary = None,
) -> None:  # fmt: skip
    """Replay a recording through the sockets and inference of a live session."""
    from mien.cli._session import output_of, run_session
    from mien.config import load_config
    from mien.stream.recording.reader import open_recording
    from mien.stream.recording.replay import Player, has_other_clocks, plan_replay, recorded_engine

    recording = open_recording(path)
    if recording.cut_off:
        typer.echo(f"{path} was cut off; replaying the {recording.seconds:.1f} s it holds", err=True)
    if has_other_clocks(recording):
        typer.echo("capture ran on other machines with their own clocks; predictions may differ slightly", err=True)
    session = plan_replay(
        recording, load_config(config, {"bus.port": port}), speed=speed, checkpoint=checkpoint, engine=engine
    )
    same = checkpoint is None and session.config.inference.engine == recorded_engine(recording)
    player = Player(recording, session.config.bus, speed, prime=same)
    run_session(
        session,
        badge="REPLAY",
        seconds=None,
        output=output_of(as_json=as_json, quiet=quiet),
        summary_path=summary,
        record=record,
        player=player,
    )
    tally = player.tally
    if not same:
        hint = f"; compare them with  mien compare {path} {record}" if record is not None else ""
        typer.echo(f"{tally.total()} predictions by a model or engine other than the recorded one{hint}", err=True)
        return
    line = f"{tally['equal']} of {tally.total()} predictions are bit-equal to the recorded ones"
    if tally["incomplete"]:
        line += f"; the recording lacks inputs of {tally['incomplete']}"
    if tally["differing"]:
        line += f"; {tally['differing']} differ, first {player.first_difference}"
    typer.echo(line, err=True)
