"""Exports a recording for other programs: CSV, JSON, and subtitles with the sentiment of the words."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import msgspec

from mien.messages import EMOTIONS
from mien.stream.recording.table import SpokenWord, Table, summarise

_PAUSE_S = 0.8  # a subtitle ends after a pause of this length,
_LONGEST_S = 5.0  # or after this long,
_LONGEST_CHARS = 74  # or when it is full: two lines
_MILD = 0.3  # sentiments closer to zero than this count as neither

_VTT_STYLE = """STYLE
::cue(.positive) { color: #7ee2a8 }
::cue(.negative) { color: #ff9d9d }"""


def export(table: Table, kind: str) -> str:
    """A recording as text: "csv", "json", "srt" or "vtt"."""
    return {"csv": _csv, "json": _json, "srt": _srt, "vtt": _vtt}[kind](table)


def _csv(table: Table) -> str:
    """One row per prediction; missing numbers are empty fields. Numbers are exact."""
    text = io.StringIO()
    modalities = table.modalities
    columns = ["t_s", "t_end_ns", "sentiment", "sentiment_smooth", "emotion", *EMOTIONS, "confidence"]
    columns += [f"{what}_{m}" for what in ("gate", "age_ms", "absent") for m in modalities]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "abstains", "latency_ms", "transcript", "model"])
    for row in table.rows:
        cells: list[Any] = [row.t_s, row.t_end_ns, row.sentiment, row.sentiment_smooth, row.emotion]
        cells += [row.emotions[name] if row.emotions else None for name in EMOTIONS]
        cells += [row.confidence, *(row.gates.get(m, 0.0) for m in modalities)]
        cells += [*(row.age_ms.get(m) for m in modalities), *(row.absent.get(m) for m in modalities)]
        writer.writerow([*cells, row.abstains, row.latency_ms, row.transcript, row.model])
    return text.getvalue()


def _json(table: Table) -> str:
    """One object: the session, the report's summary, words, and predictions."""
    content = {
        "recording": table.path.name,
        "cut_off": table.cut_off,
        "zero_ns": table.zero_ns,
        "about": table.about,
        "summary": summarise(table),
        "words": table.words,
        "predictions": table.rows,
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1).decode() + "\n"


def _srt(table: Table) -> str:
    blocks = [
        f"{number}\n{_clock(start_s, ',')} --> {_clock(end_s, ',')}\n{_label(words)}{_text(words)}\n"
        for number, (start_s, end_s, words) in enumerate(subtitles(table), 1)
    ]
    return "\n".join(blocks)


def _vtt(table: Table) -> str:
    blocks = ["WEBVTT", _VTT_STYLE]
    for start_s, end_s, words in subtitles(table):
        value = _sentiment(words)
        text = _label(words) + html.escape(_text(words), quote=False)
        if value is not None and abs(value) >= _MILD:
            text = f"<c.{'positive' if value > 0 else 'negative'}>{text}</c>"
        blocks.append(f"{_clock(start_s, '.')} --> {_clock(end_s, '.')}\n{text}")
    return "\n\n".join(blocks) + "\n"


def subtitles(table: Table) -> Iterator[tuple[float, float, list[SpokenWord]]]:
    """Start and end in seconds, and the words to show in between. They do not overlap."""
    group: list[SpokenWord] = []
    groups: list[list[SpokenWord]] = []
    for word in table.words:
        if group and (
            word.t_start_s - group[-1].t_end_s > _PAUSE_S
            or word.t_end_s - group[0].t_start_s > _LONGEST_S
            or len(_text([*group, word])) > _LONGEST_CHARS
            or group[-1].text.endswith((".", "!", "?"))
        ):
            groups.append(group)
            group = []
        group.append(word)
    groups += [group] if group else []
    for index, words in enumerate(groups):
        following = groups[index + 1][0].t_start_s if index + 1 < len(groups) else float("inf")
        start_s = max(words[0].t_start_s, 0.0)
        yield start_s, max(min(words[-1].t_end_s + 0.3, following), start_s + 0.05), words


def _text(words: list[SpokenWord]) -> str:
    return " ".join(word.text for word in words)


def _sentiment(words: list[SpokenWord]) -> float | None:
    known = [word.sentiment for word in words if word.sentiment is not None]
    return fmean(known) if known else None


def _label(words: list[SpokenWord]) -> str:
    value, emotion = _sentiment(words), words[-1].emotion
    if value is None:
        return ""
    value = round(value, 1) + 0.0  # no negative zero
    return f"[{value:+.1f} {emotion}] " if emotion else f"[{value:+.1f}] "


def _clock(seconds: float, point: str) -> str:
    ms = max(round(seconds * 1000), 0)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"
