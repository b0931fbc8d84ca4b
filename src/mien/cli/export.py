"""`mien export`: a recording for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    path: options.Recording,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row for each prediction; the default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Predictions, words and a summary.")] = False,
    srt: Annotated[bool, typer.Option("--srt", help="Subtitles with sentiment, SubRip.")] = False,
    vtt: Annotated[bool, typer.Option("--vtt", help="Subtitles with sentiment, WebVTT.")] = False,
    mcap: Annotated[bool, typer.Option("--mcap", help="Repair a truncated or damaged recording; needs --out.")] = False,
    features: Annotated[Path | None, typer.Option(help="Write the features to this file: .csv or .parquet.")] = None,
    out: options.Out = None,
) -> None:
    """Export a recording as CSV, JSON or subtitles, its features as a table, or repair one that was cut off."""
    import sys

    from mien.errors import ConfigError
    from mien.files import check_target, write_file
    from mien.stream.recording.export import export
    from mien.stream.recording.reader import open_recording
    from mien.stream.recording.table import read_table
    from mien.stream.recording.writer import rewrite

    formats = (("csv", as_csv), ("json", as_json), ("srt", srt), ("vtt", vtt), ("mcap", mcap))
    chosen = [kind for kind, selected in formats if selected]
    if len(chosen) > 1:
        raise ConfigError("one format at a time: " + " or ".join(f"--{kind}" for kind in chosen))
    if open_recording(path).cut_off:
        typer.echo(f"{path} was cut off; exporting what it holds", err=True)
    if features is not None:
        if chosen or out is not None:
            raise ConfigError("give --features FILE without another format or --out")
        from mien.stream.features.table import check_features, recorded_features

        check_features(features, [path])
        recorded_features(path).write(features)
        return
    if mcap:
        if out is None:
            raise ConfigError("--mcap needs a file to write: --out FILE")
        recording = open_recording(path)
        for first_ns, last_ns in rewrite(recording, out):
            begin_s, end_s = ((t_ns - recording.first_ns) / 1e9 for t_ns in (first_ns, last_ns))
            typer.echo(f"{path} is damaged from {begin_s:.1f} to {end_s:.1f} s; that part is left out", err=True)
        return
    if out is not None:
        check_target(out, inputs=[path])
    text = export(read_table(path), chosen[0] if chosen else "csv")
    if out is not None:
        write_file(out, text, private=True)
    else:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
