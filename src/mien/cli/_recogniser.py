"""Which recogniser hears clips that come without a text, and how long that will take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mien.stream.offline.items import ExtractOptions

HELP = "Recogniser of clips without a text: tiny.en (the default), base, or none."
DEFAULT = "tiny.en"
_SHARE = 0.2  # of the sound's length: what recognition takes on a core of 2024, measured over the built-in sample


def choose_recogniser(sources: Sequence[Path], options: ExtractOptions, asr: str, jobs: int) -> ExtractOptions:
    """The options with a recogniser: as asked for, or for folders of clips, whose words would be lost without one.

    Says on standard error how many clips are to be heard, and about how long that takes.

    Args:
        asr: as given on the command line; empty if it was not. jobs: processes; 0 is one per core.
    """
    import os

    import msgspec

    from mien.stream.offline.extraction import wordless_sound

    if asr == "none" or "text" not in options.modalities:
        return msgspec.structs.replace(options, asr="")
    count, seconds = wordless_sound(sources, options)
    if not count:
        return msgspec.structs.replace(options, asr=asr)
    chosen = asr or DEFAULT
    takes_s = seconds * _SHARE / min(jobs or os.cpu_count() or 1, count)
    clips = "1 clip" if count == 1 else f"{count} clips"
    typer.echo(
        f"{clips} without a text, {_length(seconds)} of sound: {chosen} recognises their words, in about "
        f"{_length(takes_s)} the first time; --asr none leaves words out",
        err=True,
    )
    return msgspec.structs.replace(options, asr=chosen)


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
