"""Compares two recordings of the same evidence, or two outputs of `mien predict`: different models or engines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

from msgspec.structs import replace

from mien.clock import NS_PER_S
from mien.errors import RecordingError
from mien.messages import EMOTIONS
from mien.stream.recording.reader import open_recording
from mien.stream.recording.replay import content
from mien.stream.recording.table import Row, Table, read_table


def pair_rows(first: Table, second: Table) -> list[tuple[Row, Row]]:
    """Pairs of predictions for the same instant.

    Raises:
        RecordingError: there are none.
    """
    theirs = {(row.clip, row.t_end_ns): row for row in second.rows}
    pairs = [(row, theirs[key]) for row in first.rows if (key := (row.clip, row.t_end_ns)) in theirs]
    if not pairs:
        raise RecordingError(
            f"{first.path} and {second.path} have no instant in common; compare a recording with its replay "
            "(mien replay A.mcap --speed 0 -o B.mcap), or two outputs of mien predict on the same clips"
        )
    return pairs


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Differences in numbers; signed ones are `second` minus `first`.

    Raises:
        RecordingError: a recording cannot be read, or they have nothing in common.
    """
    a, b = _table(first), _table(second)
    pairs = pair_rows(a, b)
    both = [(x, y) for x, y in pairs if x.emotions is not None and y.emotions is not None]
    values = [(x.sentiment, y.sentiment) for x, y in both if x.sentiment is not None and y.sentiment is not None]
    gates = sorted({name for x, y in both for name in {**x.gates, **y.gates}})
    sure = [y.confidence - x.confidence for x, y in both if x.confidence is not None and y.confidence is not None]
    apart = [
        sum(abs(y.emotions[e] - x.emotions[e]) for e in EMOTIONS if x.emotions and y.emotions) / 2 for x, y in both
    ]
    moved = [y - x for x, y in values]
    return {
        "first": {"file": str(first), "models": _models(a), "predictions": len(a.rows)},
        "second": {"file": str(second), "models": _models(b), "predictions": len(b.rows)},
        "instants": len(pairs),
        "bit_equal": _bit_equal(first, second, pairs),
        "abstains_differently": sum((x.emotions is None) != (y.emotions is None) for x, y in pairs),
        "sentiment": None if not values else {
            "mean_difference": fmean(moved),
            "mean_absolute_difference": fmean(map(abs, moved)),
            "largest_difference": max(moved, key=abs),
            "correlation": _correlation(values),
        },
        "same_top_emotion": fmean(x.emotion == y.emotion for x, y in both) if both else None,
        "emotions_total_variation": fmean(apart) if both else None,
        "confidence_mean_difference": fmean(sure) if both else None,
        "gates_mean_difference": {m: fmean(y.gates.get(m, 0.0) - x.gates.get(m, 0.0) for x, y in both) for m in gates},
    }  # fmt: skip


def _table(path: Path) -> Table:
    return read_predicted(path) if is_predicted(path) else read_table(path)


def _bit_equal(first: Path, second: Path, pairs: Sequence[tuple[Row, Row]]) -> int:
    """How many predictions for the same instant are equal in everything but the model's name."""
    if is_predicted(first) or is_predicted(second):
        return sum(replace(x, model="", t_s=0.0) == replace(y, model="", t_s=0.0) for x, y in pairs)

    def contents(path: Path) -> Iterator[tuple[int, bytes]]:
        return ((p.t_end_ns, content(replace(p, model=""))) for p in open_recording(path).predictions())

    theirs = dict(contents(second))
    return sum(theirs.get(t_end_ns) == made for t_end_ns, made in contents(first))


def _correlation(values: list[tuple[float, float]]) -> float | None:
    """Pearson's correlation; None if either side is constant."""
    try:
        return correlation(*zip(*values, strict=True))
    except StatisticsError:
        return None


def draw_comparison(first: Path, second: Path, out: Path) -> None:
    """Draw both recordings and their difference as a PNG file.

    Raises:
        RecordingError: a recording cannot be read, they have nothing in common, or `out` cannot be written.
    """
    from mien.stream.recording import pictures

    a, b = _table(first), _table(second)
    first_name, second_name = (f"{table.path.name}: {', '.join(_models(table))}" for table in (a, b))
    pictures.comparison(pair_rows(a, b), a.rows[0].t_s, (first_name, second_name), out)


def _models(table: Table) -> list[str]:
    return sorted({row.model for row in table.rows if row.model})


_GATE = "gate_"


def is_predicted(path: Path) -> bool:
    """Whether a file is an output of `mien predict`: CSV, or JSON lines."""
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError:
        return False
    return begin.startswith((b"clip,t_s,", b'{"clip":'))


def read_predicted(path: Path) -> Table:
    """The rows of an output of `mien predict`. Its clips are concatenated in `t_s`; `t_end_ns` is the time within each.

    Raises:
        RecordingError: it cannot be read, is not such a table, or has no rows.
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
        raise RecordingError(f"{path} is not a table of `mien predict`, row {len(rows) + 1}: {error}") from error
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
        sentiment_smooth=number("sentiment"),  # tables are not smoothed
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
