"""What `mien predict` wrote, as the table that a recording gives: a row for each instant of each clip."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mien.clock import NS_PER_S
from mien.errors import RecordingError
from mien.messages import EMOTIONS
from mien.stream.recording.table import Row, Table

_GATE = "gate_"


def is_predicted(path: Path) -> bool:
    """Whether a file is a table of `mien predict`: CSV, or JSON lines."""
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError:
        return False
    return begin.startswith((b"clip,t_s,", b'{"clip":'))


def read_predicted(path: Path) -> Table:
    """The rows of a table of `mien predict`. Its clips follow each other in `t_s`; `t_end_ns` is the time in each.

    Raises:
        RecordingError: it cannot be read, is no such table, or has no rows.
    """
    rows: list[Row] = []
    clip, begins_s, ends_s = "", 0.0, 0.0
    try:
        for values in _rows_of(path):
            if values["clip"] != clip:
                clip, begins_s = str(values["clip"]), ends_s
            seconds = float(values["t_s"])
            ends_s = begins_s + seconds
            rows.append(_row(values, clip, seconds, ends_s))
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(f"{path} is no table of `mien predict`, row {len(rows) + 1}: {error}") from error
    if not rows:
        raise RecordingError(f"{path} holds no predictions")
    return Table(path, None, False, 0, tuple(rows), (), 0)


def _rows_of(path: Path) -> Iterator[Mapping[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if text.startswith("{"):
        return (json.loads(line) for line in text.splitlines() if line.strip())
    return csv.DictReader(io.StringIO(text))


def _row(values: Mapping[str, Any], clip: str, seconds: float, t_s: float) -> Row:
    def number(name: str) -> float | None:
        value = values.get(name)
        return None if value in (None, "") else float(value)

    made = number("sentiment") is not None
    gates = {name.removeprefix(_GATE): number(name) or 0.0 for name in values if made and name.startswith(_GATE)}
    return Row(
        t_s=t_s,
        t_end_ns=round(seconds * NS_PER_S),
        sentiment=number("sentiment"),
        sentiment_smooth=number("sentiment"),  # nothing is smoothed over a table
        emotion=values.get("emotion") or None,
        emotions={name: float(values[name]) for name in EMOTIONS} if made else None,
        confidence=number("confidence"),
        gates=gates,
        age_ms={},
        absent={},
        abstains=None if made else "no evidence",
        latency_ms=None,
        transcript=values.get("words") or "",
        model=values.get("model") or "",
        clip=clip,
    )
