"""`mien record`: records a running session to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.stream.recording.recorder import RecorderState


def command(
    path: Annotated[Path, typer.Argument(help="File to create, such as talk.mcap.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration of the session.")] = None,
    port: Annotated[int | None, typer.Option(help="First of the session's four ports.")] = None,
    session: Annotated[str | None, typer.Option(help="Name of the session; default: the first one found.")] = None,
    video: Annotated[bool, typer.Option("--video", help="Record pictures too, as the dashboard shows them.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="Record sound too; needs audio.share.")] = False,
    seconds: options.Seconds = None,
    keys: options.KeysFolder = None,
    supervised: options.Supervised = False,
) -> None:  # fmt: skip
    """Record features, predictions, transcript and status of a running mien, until Ctrl-C or its clip's end."""
    import math
    import signal
    import sys
    import threading

    import msgspec

    from mien.cli._terminal import ending_signals
    from mien.config import BusConfig, load_config
    from mien.errors import MienError
    from mien.stream.recording.recorder import Recorder, RecorderState

    if supervised:
        stopping = threading.Event()
        # Ctrl-C reaches the whole terminal group; the process that started this one decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        bus = msgspec.json.decode(sys.stdin.buffer.readline(), type=BusConfig)

        def follow_stdin() -> None:
            sys.stdin.buffer.read()
            stopping.set()

        threading.Thread(target=follow_stdin, name="lifeline", daemon=True).start()
        state = RecorderState("waiting", str(path))
        try:
            recorder = Recorder(path, bus, session, video=video, audio=audio)
            try:
                recorder.run(stopping, _print_state)
            finally:
                state = recorder.state
            _print_state(msgspec.structs.replace(state, state="ended"))
        except MienError as error:
            _print_state(msgspec.structs.replace(state, state="failed", error=str(error)))
            sys.exit(error.exit_code)
        return
    bus = load_config(config, {"bus.port": port, "bus.keys": keys}).bus
    with ending_signals() as stopping:
        recorder = Recorder(path, bus, session, video=video, audio=audio)
        typer.echo(f"recording {bus.address()} to {path}; Ctrl-C ends", err=True)
        state = recorder.run(stopping, _show, math.inf if seconds is None else seconds)
    typer.echo(
        f"\r{path}: {state.seconds:.1f} s, {state.predictions} predictions, {state.bytes / 1e6:.2f} MB"
        + (f", {state.lost} messages were lost in transit" if state.lost else ""),
        err=True,
    )
    for note in recorder.notes:
        typer.secho(note, fg=typer.colors.YELLOW, err=True)


def _print_state(state: object) -> None:
    import contextlib
    import sys

    import msgspec

    from mien.cli._streams import ReaderGoneError

    with contextlib.suppress(ReaderGoneError):  # the reader is gone; the file matters more
        sys.stdout.buffer.write(msgspec.json.encode(state) + b"\n")
        sys.stdout.buffer.flush()


def _show(state: RecorderState) -> None:
    """One line on a terminal, updated once a second."""
    import sys

    if sys.stderr.isatty():
        sys.stderr.write(
            f"\r{state.state}  {state.seconds:6.1f} s  {state.predictions} predictions  {state.bytes / 1e6:.2f} MB "
        )
        sys.stderr.flush()
