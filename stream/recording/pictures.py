"""Charts of a recording, for screen and paper: dark on white, readable without colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mien.errors import RecordingError
from mien.files import whole_file
from mien.messages import EMOTIONS, MODALITY_NAMES
from mien.stream.recording.table import Row, Table

Floats = npt.NDArray[np.float64]

# Okabe and Ito's palette, distinguishable with any colour vision.
EMOTION_COLOURS = {
    "neutral": "#b8bec6",
    "happy": "#e69f00",
    "sad": "#0072b2",
    "angry": "#d55e00",
    "fear": "#cc79a7",
    "disgust": "#009e73",
    "surprise": "#56b4e9",
}
MODALITY_COLOURS = {"vision": "#0072b2", "audio": "#e69f00", "text": "#009e73"}
_OTHERS = ("#cc79a7", "#56b4e9", "#d55e00")
_INK, _PALE = "#1f2933", "#8a94a0"
_BINS = 1200  # one point per two pixels; more would only enlarge the file
_STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "path",
}


def timeline(table: Table) -> str:
    """Sentiment, emotions, modality shares and gaps on a common time axis, as SVG."""
    t_s, value = _binned(table.rows)

    def draw(figure: Any) -> None:
        axes = figure.subplots(4, 1, sharex=True, height_ratios=[3, 2.4, 2.0, 0.9])
        _sentiment(axes[0], t_s, value)
        made = value(lambda row: row.emotions["neutral"] if row.emotions else None)
        shares = [value(lambda row, e=e: row.emotions[e] if row.emotions else None) for e in EMOTIONS]  # type: ignore[misc]
        _stack(axes[1], t_s, shares, [EMOTION_COLOURS[e] for e in EMOTIONS], list(EMOTIONS), "emotions")
        gates = [
            value(lambda row, m=m: row.gates.get(m, 0.0) if row.emotions else None)  # type: ignore[misc]
            for m in table.modalities
        ]
        names = [MODALITY_NAMES.get(m, m) for m in table.modalities]
        _stack(axes[2], t_s, gates, [_colour(m, table) for m in table.modalities], names, "share in the\ndecision")
        _coverage(axes[3], t_s, table, value)
        for axis in axes[1:3]:
            _hatch_missing(axis, t_s, made)
        axes[3].set_xlabel("seconds")
        axes[3].set_xlim(t_s[0], max(t_s[-1], t_s[0] + 1e-3))

    return _svg("timeline", draw, (10.0, 7.6))


def emotion_shares(means: dict[str, float], tops: dict[str, float]) -> str:
    """Mean probability of each emotion, and how often it is on top, as SVG."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        at = np.arange(len(EMOTIONS))
        axis.barh(at - 0.2, [means[e] for e in EMOTIONS], 0.38, color=[EMOTION_COLOURS[e] for e in EMOTIONS])
        axis.barh(
            at + 0.2, [tops[e] for e in EMOTIONS], 0.38, color="white", edgecolor=[EMOTION_COLOURS[e] for e in EMOTIONS]
        )
        for index, name in enumerate(EMOTIONS):
            axis.text(means[name] + 0.01, index - 0.2, f"{means[name]:.0%}", va="center", fontsize=8)
            axis.text(tops[name] + 0.01, index + 0.2, f"{tops[name]:.0%}", va="center", fontsize=8, color=_PALE)
        axis.set_yticks(at, EMOTIONS)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.08)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axis.set_xlabel("filled: mean probability; outlined: share of predictions with it on top")

    return _svg("emotions", draw, (5.0, 3.2))


def latencies(rows: Sequence[Row], percentiles: dict[str, float] | None) -> str | None:
    """Prediction latencies, and their percentiles in ms, as SVG; None if the recording lacks them."""
    values = np.array([row.latency_ms for row in rows if row.latency_ms is not None])
    if not len(values) or percentiles is None:
        return None

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.hist(values, bins=min(60, max(10, len(values) // 20)), color="#56b4e9")
        for name in ("p50", "p99"):
            axis.axvline(percentiles[name], color=_INK, lw=1, ls="--")
            axis.text(
                percentiles[name], 1.0, f" {name} {percentiles[name]:.0f} ms ", va="bottom", fontsize=8,
                ha="right" if name == "p50" else "left", transform=axis.get_xaxis_transform(),
            )  # fmt: skip
        axis.set_xlabel("frame read to prediction published, ms")
        axis.set_ylabel("predictions")

    return _svg("latencies", draw, (5.0, 3.2))


def comparison(pairs: Sequence[tuple[Row, Row]], zero_s: float, names: tuple[str, str], path: Path) -> None:
    """Two recordings overlaid, and their difference, as a PNG file."""
    t_s = np.array([a.t_s for a, _ in pairs]) - zero_s
    first, second = (np.array([_nan(pair[side].sentiment_smooth) for pair in pairs]) for side in (0, 1))

    def draw(figure: Any) -> None:
        axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1])
        axes[0].plot(t_s, first, color="#0072b2", lw=1.6, label=names[0])
        axes[0].plot(t_s, second, color="#d55e00", lw=1.2, ls="--", label=names[1])
        axes[0].axhline(0, color=_PALE, lw=0.6)
        axes[0].set_ylim(-3.1, 3.1)
        axes[0].set_ylabel("sentiment, smoothed")
        axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, borderpad=0)
        difference = second - first
        axes[1].plot(t_s, difference, color=_INK, lw=1)
        axes[1].axhline(0, color=_PALE, lw=0.6)
        largest = float(np.nanmax(np.abs(difference))) if np.isfinite(difference).any() else 0.0
        axes[1].set_ylim(-max(largest, 1e-3) * 1.15, max(largest, 1e-3) * 1.15)
        axes[1].set_ylabel("second - first")
        for row, side in ((1, 0), (0, 1)):
            colours = [EMOTION_COLOURS.get(pair[side].emotion or "", "white") for pair in pairs]
            axes[2].scatter(t_s, np.full(len(t_s), row), c=colours, marker="|", s=160)
        axes[2].set_yticks([1, 0], ["first", "second"])
        axes[2].set_ylim(-0.6, 1.6)
        axes[2].set_ylabel("top emotion")
        axes[2].set_xlabel("seconds")

    with whole_file(path, error=RecordingError) as unfinished:
        _figure(draw, (10.0, 6.0)).savefig(unfinished, dpi=150, format="png")


def _sentiment(axis: Any, t_s: Floats, value: Callable[[Callable[[Row], float | None]], Floats]) -> None:
    raw, smooth = value(lambda row: row.sentiment), value(lambda row: row.sentiment_smooth)
    doubt = 1.0 - value(lambda row: row.confidence)
    axis.fill_between(t_s, smooth - doubt, smooth + doubt, color="#56b4e9", alpha=0.25, lw=0, label="less sure: wider")
    axis.plot(t_s, raw, color=_PALE, lw=0.7, label="raw")
    axis.plot(t_s, smooth, color="#0072b2", lw=1.8, label="smoothed")
    axis.axhline(0, color=_PALE, lw=0.6)
    axis.set_ylim(-3.1, 3.1)
    axis.set_yticks([-3, -2, -1, 0, 1, 2, 3], ["-3", "", "", "0", "", "", "+3"])
    axis.set_ylabel("sentiment")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8)
    _hatch_missing(axis, t_s, smooth)


def _stack(axis: Any, t_s: Floats, shares: list[Floats], colours: list[str], names: list[str], label: str) -> None:
    axis.stackplot(t_s, *[np.nan_to_num(share) for share in shares], colors=colours, labels=names, lw=0)
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0", "", "100 %"])
    axis.set_ylabel(label)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.05), fontsize=8, labelspacing=0.25)


def _coverage(axis: Any, t_s: Floats, table: Table, value: Callable[[Callable[[Row], float | None]], Floats]) -> None:
    for index, name in enumerate(table.modalities):
        there = value(lambda row, name=name: float(row.gates.get(name, 0.0) > 0))  # type: ignore[misc]
        axis.fill_between(
            t_s, index - 0.35, index + 0.35, where=there > 0.5, color=_colour(name, table), step="mid", lw=0
        )
    axis.set_yticks(range(len(table.modalities)), [MODALITY_NAMES.get(m, m) for m in table.modalities])
    axis.set_ylim(len(table.modalities) - 0.4, -0.6)
    axis.set_ylabel("evidence")


def _hatch_missing(axis: Any, t_s: Floats, made: Floats) -> None:
    """Hatch the periods without predictions, so that gaps are visible as such."""
    low, high = axis.get_ylim()
    axis.fill_between(
        t_s, low, high, where=np.isnan(made), step="mid", facecolor="white", edgecolor="#c5ccd3", hatch="////", lw=0
    )


def _binned(rows: Sequence[Row]) -> tuple[Floats, Callable[[Callable[[Row], float | None]], Floats]]:
    """Times, and a function that samples a field of the rows at these times: bin means, NaN for empty bins."""
    times = np.array([row.t_s for row in rows])
    if len(rows) <= _BINS:
        return times, lambda pick: np.array([_nan(pick(row)) for row in rows])
    edges = np.linspace(times[0], times[-1], _BINS + 1)
    where = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, _BINS - 1)

    def value(pick: Callable[[Row], float | None]) -> Floats:
        numbers = np.array([_nan(pick(row)) for row in rows])
        known = np.isfinite(numbers)
        counts = np.bincount(where[known], minlength=_BINS)
        sums = np.bincount(where[known], weights=numbers[known], minlength=_BINS)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    return (edges[:-1] + edges[1:]) / 2, value


def _colour(modality: str, table: Table) -> str:
    return MODALITY_COLOURS.get(modality) or _OTHERS[table.modalities.index(modality) % len(_OTHERS)]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _figure(draw: Callable[[Any], None], size: tuple[float, float]) -> Any:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
    return figure


def _svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """A chart as an SVG element that fills its column."""
    import matplotlib

    out = io.StringIO()
    # Charts on one page must not share element ids.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        _figure(draw, size).savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    opening, rest = text[text.index("<svg") :].split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest
