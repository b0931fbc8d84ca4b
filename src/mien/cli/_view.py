"""The live terminal view: one prediction and the state of the processes, on one screen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from mien.messages import EMOTIONS, MODALITY_NAMES, SENTIMENT_MAX, Prediction, Status, Word

STALE_S = 2.0
_FRAMED = 60, 20  # minimum columns and rows for a frame
_WIDE = 70  # minimum columns for units in a process's line
_WORD_ROWS = 3
_LEAST_ROWS, _MOST_ROWS = 5, 15  # of the sentiment's curve
_NAME, _SHARE = 8, 4  # widths of an emotion's name and of a percentage
_EMOTION_STYLE = {
    "neutral": "white",
    "happy": "yellow",
    "sad": "blue",
    "angry": "red",
    "fear": "magenta",
    "disgust": "green",
    "surprise": "cyan",
}
_WORKERS = ("video", "audio", "text", "inference")
_FIRST_YEAR_NS = 365 * 86_400 * 10**9  # earlier times are those of a clip, counted from its start


def render(
    prediction: Prediction | None,
    statuses: Mapping[str, Status],
    *,
    badge: str,
    label: str,
    per_second: float,
    p99_ms: float | None = None,
    silent_s: float = 0.0,
    width: int = 92,
    height: int | None = None,
    fill: bool = False,
    note: str = "",
    history: Sequence[float | None] = (),
) -> RenderableType:
    """The view, laid out for a terminal of that size.

    In a small terminal, healthy processes share a line, and blank lines are left out; in a large one, a curve of recent
    sentiment is added. Long reasons and errors are wrapped, never truncated.

    Args:
        badge: "LIVE", "SAMPLE" or "CLIP": the source of picture and sound. label: its name.
        silent_s: seconds since the last prediction; from two on the view marks it as stale.
        width: columns. height: available rows; None for as many as needed.
        fill: use all of `height`.
        note: message for the user while nothing arrives.
        history: smoothed sentiment at even intervals, oldest first, None where there was none.
    """
    framed = width >= _FRAMED[0] and (height is None or height >= _FRAMED[1])
    inner = width - 4 if framed else width
    room = None if height is None else height - 2 if framed else height
    head = Text().append(f" {badge} ", style="bold white on blue")
    head.append(f" {plain(label)}", style="dim")
    if prediction is None or silent_s >= STALE_S:
        head.append(f"  STALE {silent_s:.0f} s ", style="bold black on yellow")
    elif prediction.abstains:
        head.append(f"  ABSTAINS: {plain(prediction.abstains)} ", style="bold black on yellow")
    parts = [_wrapped(head, inner)]
    if note:
        parts.append(_wrapped(Text(plain(note), style="yellow"), inner))
    if prediction is None:
        parts.append([Text("waiting for the first prediction", style="dim")])
    else:
        parts += [[_sentiment(prediction, inner)], [*_columns(prediction, inner)]]
    processes = _processes(statuses, prediction, per_second, p99_ms, inner)
    used = sum(map(len, parts)) + (prediction is not None)
    if room is not None and used + len(processes) > room:
        processes = _processes(statuses, prediction, per_second, p99_ms, inner, short=True)
    blanks = len(parts) + 1
    if room is not None and used + len(processes) + blanks > room:
        blanks = 0
    if prediction is not None:
        spare = 1 if room is None or not fill else max(1, room - used - len(processes) - blanks + 1)
        parts.append(_words(prediction, inner, min(spare, _WORD_ROWS)))
        left = spare - len(parts[-1]) - 1
        if history and left >= _LEAST_ROWS:
            parts.insert(len(parts) - 2, _drawn(history, inner, min(left, _MOST_ROWS)))
    parts.append(processes)
    lines: list[Text] = []
    for part in parts:
        lines += [Text(), *part] if blanks and lines else part
    if fill and room is not None:
        lines += [Text()] * (room - len(lines))
    body = Group(*(lines if room is None else lines[:room]))
    if not framed:
        return body
    return Panel(body, title="mien", title_align="left", border_style="dim", width=width)


def line(prediction: Prediction) -> str:
    """One prediction on one line, for a terminal without a cursor or a log file."""
    if prediction.abstains or prediction.sentiment is None or prediction.emotions is None:
        return plain(f"{clock(prediction.t_end_ns)}  abstains: {prediction.abstains}")
    top = prediction.top_emotion or ""
    gates = " ".join(f"{name} {prediction.gates.get(key, 0.0):.2f}" for key, name in MODALITY_NAMES.items())
    words = f"{prediction.transcript.committed} {prediction.transcript.tentative}".strip()
    if not words and prediction.transcript.uncertain:
        words = f"({prediction.transcript.uncertain}?)"
    return plain(
        f"{clock(prediction.t_end_ns)}  sentiment {prediction.sentiment_smooth or 0.0:+.2f}  "
        f"{top:<8} {prediction.emotions[top]:.2f}  {gates}  {words[-48:]}"
    )


def plain(text: str) -> str:
    """Text without control characters: text from the network may contain escape sequences."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def clock(t_ns: int) -> str:
    """A session time as hh:mm:ss: the local time of day, or the position in a clip."""
    seconds, hundredths = t_ns // 10**9, t_ns // 10**7 % 100
    if t_ns < _FIRST_YEAR_NS:
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{hundredths:02d}"
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{hundredths:02d}"


@cache
def _measuring() -> Console:
    return Console(markup=False, emoji=False, highlight=False)


def _wrapped(text: Text, width: int) -> list[Text]:
    return list(text.wrap(_measuring(), width)) or [Text()]


def _sentiment(prediction: Prediction, width: int) -> Text:
    text = Text("sentiment ")
    value = prediction.sentiment_smooth
    sure = "" if prediction.confidence is None else f"  {prediction.confidence:.0%} sure"
    half = max(3, (width - len("sentiment -3 ┼ +3  +0.00  100% sure")) // 2)
    if value is None:
        return text.append("–" * (2 * half + 1), style="dim")
    cells = round(min(abs(value), SENTIMENT_MAX) / SENTIMENT_MAX * half)
    style = "green" if value >= 0 else "red"
    left = "─" * (half - cells) + "█" * cells if value < 0 else "─" * half
    right = "█" * cells + "─" * (half - cells) if value >= 0 else "─" * half
    text.append("-3 ", style="dim")
    text.append(left, style=style if value < 0 else "dim")
    text.append("┼", style="bold")
    text.append(right, style=style if value >= 0 else "dim")
    text.append(" +3 ", style="dim")
    text.append(f" {value:+.2f}", style=f"bold {style}")
    return text.append(sure, style="dim")


def _drawn(history: Sequence[float | None], width: int, rows: int) -> list[Text]:
    """The sentiment curve, newest on the right."""
    values = list(history)[-(width - 3) :]
    middle = rows // 2
    heights = [None if v is None else round((0.5 - v / (2 * SENTIMENT_MAX)) * (rows - 1)) for v in values]
    lines = []
    for row in range(rows):
        text = Text({0: "+3 ", middle: " 0 ", rows - 1: "-3 "}.get(row, "   "), style="dim")
        text.append(" " * (width - 3 - len(values)))
        for height in heights:
            ground = "·" if row == middle else " "
            style = "green not dim" if row <= middle else "red not dim"
            text.append("●", style=style) if height == row else text.append(ground)
        lines.append(text)
    return lines


def _bar(share: float, style: str, width: int) -> Text:
    cells = round(max(0.0, min(share, 1.0)) * width)
    return Text("█" * cells, style=style).append("·" * (width - cells), style="dim")


def _columns(prediction: Prediction, width: int) -> Iterator[Text]:
    """Emotions and shares side by side; long reasons go below."""
    left = width * 11 // 20
    right = width - left - 3
    shares, reasons = _shares(prediction, right)
    for emotion, share in zip(_emotions(prediction, left), shares, strict=True):
        yield Text().append_text(emotion).append("   ").append_text(share)
    yield from (each for reason in reasons for each in _wrapped(reason, width))


def _emotions(prediction: Prediction, width: int) -> Iterator[Text]:
    for name in EMOTIONS:
        share = prediction.emotions.get(name, 0.0) if prediction.emotions else 0.0
        style = f"bold {_EMOTION_STYLE[name]}" if name == prediction.top_emotion else "dim"
        text = Text(f"{name:<{_NAME}} ", style=style)
        text.append_text(_bar(share, _EMOTION_STYLE[name], max(width - _NAME - _SHARE - 2, 1)))
        yield text.append(f" {share:4.0%}" if prediction.emotions else "    –", style="default not bold not dim")


def _shares(prediction: Prediction, width: int) -> tuple[list[Text], list[Text]]:
    title = "share in the decision"
    lines, reasons = [Text(title if len(title) <= width else "share", style="dim")], []
    for key, name in MODALITY_NAMES.items():
        share, age_ms = prediction.gates.get(key, 0.0), prediction.age_ms.get(key)
        text = Text(f"{name:<5} ").append_text(_bar(share, "cyan", max(width - 5 - _SHARE - 2, 1)))
        lines.append(text.append(f" {share:4.0%}"))
        absent = plain(prediction.absent.get(key, ""))
        note = absent or (f"{age_ms:.0f} ms old" if age_ms is not None else "nothing seen")
        if len(note) > width - 6:
            reasons.append(Text(f"{name} missing: {note}", style="yellow"))
            note = "missing"
        lines.append(Text(f"      {note}", style="dim" if age_ms is not None and not absent else "yellow"))
    return lines, reasons


def _words(prediction: Prediction, width: int, rows: int) -> list[Text]:
    """The newest words that fit into this many rows."""
    title = "words  "
    if not prediction.words:
        return _wrapped(Text(title + plain(prediction.absent.get("text", "none in the last 5 s")), style="dim"), width)[
            :rows
        ]
    words: Sequence[Word] = prediction.words
    while True:
        text = Text(title, style="dim")
        for word in words:
            if word.uncertain:
                text.append(f"({plain(word.text.strip())}?) ", style="dim yellow not bold")
            else:
                style = "bold white not dim" if word.committed else "dim italic"
                text.append(plain(word.text.strip()) + " ", style=style)
        lines = _wrapped(text, width)
        if len(lines) <= rows or len(words) == 1:
            return lines[:rows]
        words = words[1:]


def _processes(
    statuses: Mapping[str, Status],
    prediction: Prediction | None,
    per_second: float,
    p99_ms: float | None,
    width: int,
    *,
    short: bool = False,
) -> list[Text]:
    """Rates, latency and model, then each process; `short`: healthy ones share one line."""
    text = f"{per_second:.1f} predictions/s"
    if prediction is not None and "total" in prediction.latency:
        text += f"  latency {prediction.latency['total']:.0f} ms" + (
            f" (p99 {p99_ms:.0f})" if p99_ms is not None else ""
        )
    lines = [text]
    if prediction is not None:
        model = plain(prediction.model)
        if len(text) + 2 + len(model) <= width:
            lines = [f"{text}  {model}"]
        elif not short:
            lines.append(model)
    found = [Text(each, style="dim") for each in lines]
    present = [statuses[worker] for worker in _WORKERS if worker in statuses]
    well = [status for status in present if short and status.state == "running" and not status.last_error]
    for status in present:
        if short and status not in well:
            error = plain(status.last_error or "no reason given")
            found.append(Text(f"{status.worker} {status.state}: {error}", style="yellow"))
        elif status not in well:
            found.append(_process(status, width))
            if status.last_error:
                found.append(Text(f"  {plain(status.last_error)}", style="yellow"))
    if well:
        found.append(Text(f"{', '.join(status.worker for status in well)} running", style="dim"))
    return [each for text in found for each in _wrapped(text, width)]


def _process(status: Status, width: int) -> Text:
    text = Text(f"{status.worker:<9} ", style="dim")
    text.append(f"{status.state:<8}", style="yellow" if status.state in ("degraded", "failed") else "")
    text.append(f" {status.fps:5.1f}/s" if width >= _WIDE else f" {status.fps:3.0f}/s")
    if status.cpu_percent is not None and status.rss_mb is not None:
        wide = f"  cpu {status.cpu_percent:3.0f} %  {status.rss_mb:4.0f} MB"
        text.append(wide if width >= _WIDE else f" {status.cpu_percent:3.0f}% {status.rss_mb:4.0f}MB")
    drops = sum(status.drops.values())
    return text.append(f"  drops {drops}" if drops else "")
