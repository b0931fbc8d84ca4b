"""The live terminal view: one prediction and how the processes are, on one screen."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mien.emotions import EMOTIONS, SENTIMENT_MAX
from mien.messages import Prediction, Status

STALE_S = 2.0
_BAR = 24
_HALF = 20  # of the sentiment's scale
_EMOTION_STYLE = {
    "neutral": "white",
    "happy": "yellow",
    "sad": "blue",
    "angry": "red",
    "fear": "magenta",
    "disgust": "green",
    "surprise": "cyan",
}
_MODALITIES = (("vision", "face"), ("audio", "voice"), ("text", "words"))
_WORKERS = ("video", "audio", "text", "inference")


def render(
    prediction: Prediction | None,
    statuses: Mapping[str, Status],
    *,
    badge: str,
    label: str,
    per_second: float,
    p99_ms: float | None = None,
    silent_s: float = 0.0,
) -> RenderableType:
    """The view.

    Args:
        badge: "LIVE", "SAMPLE" or "CLIP": where picture and sound come from. label: its name.
        silent_s: seconds since the last prediction; from two on the view says that it is stale.
    """
    badges = Text().append(f" {badge} ", style="bold white on blue")
    badges.append(f" {plain(label)}", style="dim")
    if prediction is None or silent_s >= STALE_S:
        badges.append(f"  STALE {silent_s:.0f} s ", style="bold black on yellow")
    elif prediction.abstains:
        badges.append(f"  ABSTAINS: {plain(prediction.abstains)} ", style="bold black on yellow")
    body: list[RenderableType] = [badges, Text()]
    if prediction is None:
        body.append(Text("waiting for the first prediction", style="dim"))
    else:
        body += [_sentiment(prediction), Text(), _columns(prediction), Text(), _words(prediction), Text()]
    body.append(_processes(statuses, prediction, per_second, p99_ms))
    return Panel(Group(*body), title="mien", title_align="left", border_style="dim", width=92)


def line(prediction: Prediction) -> str:
    """One prediction on one line, for a terminal without a cursor or a log file."""
    if prediction.abstains or prediction.sentiment is None or prediction.emotions is None:
        return plain(f"{_clock(prediction)}  abstains: {prediction.abstains}")
    top = prediction.top_emotion or ""
    gates = " ".join(f"{name} {prediction.gates.get(key, 0.0):.2f}" for key, name in _MODALITIES)
    words = f"{prediction.transcript.committed} {prediction.transcript.tentative}".strip()
    if not words and prediction.transcript.uncertain:
        words = f"({prediction.transcript.uncertain}?)"
    return plain(
        f"{_clock(prediction)}  sentiment {prediction.sentiment_smooth or 0.0:+.2f}  "
        f"{top:<8} {prediction.emotions[top]:.2f}  {gates}  {words[-48:]}"
    )


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: what comes over the network may hold escape sequences."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _clock(prediction: Prediction) -> str:
    seconds = prediction.t_end_ns / 1e9
    return f"{int(seconds // 60) % 60:02d}:{seconds % 60:05.2f}"


def _sentiment(prediction: Prediction) -> Text:
    text = Text("sentiment  ")
    value = prediction.sentiment_smooth
    if value is None:
        return text.append("–" * (2 * _HALF + 1), style="dim")
    cells = round(min(abs(value), SENTIMENT_MAX) / SENTIMENT_MAX * _HALF)
    style = "green" if value >= 0 else "red"
    left = "─" * (_HALF - cells) + "█" * cells if value < 0 else "─" * _HALF
    right = "█" * cells + "─" * (_HALF - cells) if value >= 0 else "─" * _HALF
    text.append("-3 ", style="dim")
    text.append(left, style=style if value < 0 else "dim")
    text.append("┼", style="bold")
    text.append(right, style=style if value >= 0 else "dim")
    text.append(" +3 ", style="dim")
    text.append(f" {value:+.2f}", style=f"bold {style}")
    if prediction.confidence is not None:
        text.append(f"   confidence {prediction.confidence:.0%}", style="dim")
    return text


def _bar(share: float, style: str, width: int = _BAR) -> Text:
    cells = round(max(0.0, min(share, 1.0)) * width)
    return Text("█" * cells, style=style).append("·" * (width - cells), style="dim")


def _columns(prediction: Prediction) -> Table:
    grid = Table.grid(padding=(0, 4, 0, 0))
    emotions = Table.grid(padding=(0, 1, 0, 0))
    top = prediction.top_emotion
    for name in EMOTIONS:
        share = prediction.emotions.get(name, 0.0) if prediction.emotions else 0.0
        emotions.add_row(
            Text(name, style=f"bold {_EMOTION_STYLE[name]}" if name == top else "dim"),
            _bar(share, _EMOTION_STYLE[name]),
            f"{share:4.0%}" if prediction.emotions else "   –",
        )
    gates = Table.grid(padding=(0, 1, 0, 0))
    for key, name in _MODALITIES:
        age_ms = prediction.age_ms.get(key)
        note = prediction.absent.get(key) or (f"{age_ms:.0f} ms old" if age_ms is not None else "nothing seen")
        share = prediction.gates.get(key, 0.0)
        gates.add_row(name, _bar(share, "cyan", 12), f"{share:4.0%}")
        gates.add_row("", Text(plain(note[:22]), style="dim" if age_ms is not None else "yellow"), "")
    grid.add_row(emotions, Group(Text("share in the decision", style="dim"), gates))
    return grid


def _words(prediction: Prediction) -> Text:
    text = Text("words  ", style="dim", no_wrap=True, overflow="ellipsis")
    if prediction.words:
        for word in prediction.words[-14:]:
            if word.uncertain:
                text.append(f"({plain(word.text.strip())}?) ", style="dim yellow")
            else:
                text.append(plain(word.text.strip()) + " ", style="bold white" if word.committed else "dim italic")
    else:
        text.append(plain(prediction.absent.get("text", "none in the last 5 s")), style="dim")
    return text


def _processes(
    statuses: Mapping[str, Status], prediction: Prediction | None, per_second: float, p99_ms: float | None
) -> Text:
    text = Text(style="dim")
    text.append(f"{per_second:4.1f} predictions/s")
    if prediction is not None and "total" in prediction.latency:
        text.append(f"   latency {prediction.latency['total']:.0f} ms")
        text.append(f" (p99 {p99_ms:.0f})" if p99_ms is not None else "")
    if prediction is not None:
        text.append(plain(f"   {prediction.model}"))
    for worker in _WORKERS:
        status = statuses.get(worker)
        if status is None:
            continue
        text.append(f"\n{worker:<10} ")
        text.append(f"{status.state:<9}", style="yellow" if status.state in ("degraded", "failed") else "")
        text.append(f" {status.fps:5.1f}/s")
        if status.cpu_percent is not None and status.rss_mb is not None:
            text.append(f"  cpu {status.cpu_percent:3.0f} %  {status.rss_mb:4.0f} MB")
        drops = sum(status.drops.values())
        text.append(f"  drops {drops}" if drops else "")
        text.append(plain(f"  {status.last_error}"[:60]) if status.last_error else "", style="yellow")
    return text
