"""A recording as one page: self-contained, for screen and paper. Its numbers equal those of `mien export --json`."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from typing import Any

import mien
from mien.messages import MODALITY_NAMES
from mien.stream.recording import pictures
from mien.stream.recording.export import subtitles
from mien.stream.recording.table import UNIX_NS, Table, summarise

_CSS = """
:root { --ink: #1f2933; --pale: #66727f; --line: #dfe4e9 }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background: #fff;
  max-width: 1020px; margin: 0 auto; padding: 28px 24px 48px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 17px; margin: 30px 0 8px }
.sub, .note { color: var(--pale) } .note { font-size: 13px }
svg { width: 100%; height: auto; display: block }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 10px; margin: 18px 0 4px }
.facts div { border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px }
.facts b { display: block; font-size: 16px; white-space: nowrap; font-variant-numeric: tabular-nums }
.facts span { color: var(--pale); font-size: 12.5px }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 22px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right } th { font-weight: 600; color: var(--pale); font-size: 13px }
.words td:first-child { width: 1%; white-space: nowrap; color: var(--pale) }
.w { border-bottom: 3px solid; padding-bottom: 1px }
section { break-inside: avoid }
@media print { .facts { grid-template-columns: repeat(7, 1fr); gap: 6px } .facts div { padding: 5px 7px }
  .facts b { font-size: 14px } .facts span, .note, th { font-size: 10px }
  body { max-width: none; padding: 0; font-size: 11px } h2 { margin-top: 16px } @page { margin: 14mm } }
"""


def report(table: Table) -> str:
    """The page as HTML. It loads no external resources."""
    figures = summarise(table)
    about = table.about
    title = html.escape(table.path.name)
    sections = [
        f"<h1>{title}</h1><p class=sub>{html.escape(_subtitle(table, figures))}</p>",
        _facts(figures),
        _section("Timeline", pictures.timeline(table), "Hatched: no prediction, for lack of evidence."),
        f"<div class=two>{_emotions(figures)}{_modalities(figures, table)}</div>",
        _transcript(table),
        f"<div class=two>{_latency(figures, table)}{_made_by(table, figures)}</div>",
        "<p class=note>mien estimates what a face, a voice and words express, as people labelled it in corpora of "
        "mostly acted speech. It does not know what a person feels, and must not be used to decide anything about a "
        "person.</p>",
    ]
    label = f" content='mien {mien.__version__}'"
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<meta name=generator{label}><title>{title}</title><style>{_CSS}</style></head>\n<body>"
        + "\n".join(sections)
        + (f"<!-- {html.escape(about.session).replace('--', '')} -->" if about else "")
        + "</body></html>\n"
    )


def _subtitle(table: Table, figures: dict[str, Any]) -> str:
    about = table.about
    parts = [f"{figures['seconds']:.1f} s", f"{figures['predictions']} predictions"]
    if about is not None:
        # Relative to the recording: the session may have started days before. A clip played in full has its own time.
        first_ns = table.rows[0].t_end_ns
        when = datetime.fromtimestamp((first_ns if first_ns >= UNIX_NS else about.t_ns) / 1e9, UTC)
        parts = [
            f"{about.origin}: {about.label}" if about.label else about.origin,
            f"{when:%Y-%m-%d %H:%M} UTC",
            *parts,
        ]
    if table.cut_off:
        parts.append("the recording was cut off; this page shows what it holds")
    return ", ".join(parts)


def _facts(figures: dict[str, Any]) -> str:
    sentiment, tops, latency = figures["sentiment"], figures["top_emotion"], figures["latency_ms"]
    top = max(tops, key=tops.__getitem__) if tops else None
    facts = [
        (_number(sentiment and sentiment["mean"], "+.2f"), "mean sentiment, -3 to +3"),
        (f"{_tenth(sentiment['min'])} … {_tenth(sentiment['max'])}" if sentiment else "–", "its range"),
        (top or "–", f"on top in {tops[top]:.0%}" if tops and top else "no prediction"),
        (_number(figures["confidence"], ".0%"), "mean confidence"),
        (str(figures["words"]), "words"),
        (f"{figures['abstained'] / figures['predictions']:.1%}", "abstained"),
        (_number(latency and latency["p50"], ".0f") + " ms", "median latency") if latency else ("–", "latency"),
    ]
    cells = "".join(f"<div><b>{html.escape(value)}</b><span>{what}</span></div>" for value, what in facts)
    return f"<div class=facts>{cells}</div>"


def _emotions(figures: dict[str, Any]) -> str:
    if not figures["emotions"]:
        return _section("Emotions", "<p>There were no predictions.</p>")
    return _section("Emotions", pictures.emotion_shares(figures["emotions"], figures["top_emotion"]))


def _modalities(figures: dict[str, Any], table: Table) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(MODALITY_NAMES.get(name, name))}</td>"
        f"<td class=n>{figures['coverage'][name]:.1%}</td>"
        f"<td class=n>{_number(figures['gates'] and figures['gates'][name], '.1%')}</td></tr>"
        for name in table.modalities
    )
    reasons: dict[tuple[str, str], int] = {}
    for row in table.rows:
        for name, reason in row.absent.items():
            kind = reason.partition(" for ")[0]  # "nothing received for 1.3 s": the seconds differ each time
            reasons[name, kind] = reasons.get((name, kind), 0) + 1
    missing = "".join(
        f"<li>{html.escape(MODALITY_NAMES.get(name, name))}: {html.escape(reason)} ({count / len(table.rows):.1%})"
        for (name, reason), count in sorted(reasons.items(), key=lambda item: -item[1])
    )
    if missing:
        missing = f"<p class=note>Missing entirely, share of all predictions:</p><ul class=note>{missing}</ul>"
    return _section(
        "Coverage and shares",
        f"<table><tr><th><th class=n>had evidence<th class=n>mean share in the decision</tr>{rows}</table>{missing}",
    )


def _transcript(table: Table) -> str:
    lines = ""
    for start_s, _, words in subtitles(table):
        marked = " ".join(_marked(word.sentiment, html.escape(word.text)) for word in words)
        lines += f"<tr><td>{_clock(start_s)}</td><td>{marked}</td></tr>"
    if not lines:
        return _section("Words", "<p>Nothing was said, or nothing was recognised.</p>")
    return (
        "<h2>Words</h2><p class=note>Underlined with the sentiment of each phrase: "
        f"{_marked(-2)} negative {_marked(0)} neither {_marked(2)} positive</p>"
        f"<table class=words>{lines}</table>"
    )


def _latency(figures: dict[str, Any], table: Table) -> str:
    picture = pictures.latencies(table.rows, figures["latency_ms"])
    if picture is None:
        return _section("Latency", "<p>A clip played with --fast, or a replay: latency has no meaning.</p>")
    values = figures["latency_ms"]
    text = ", ".join(f"{name} {ms:.1f} ms" for name, ms in values.items())
    return _section("Latency", picture, text)


def _made_by(table: Table, figures: dict[str, Any]) -> str:
    about = table.about
    rows = [("model", ", ".join(figures["models"])), ("lost in transit", f"{figures['lost']} predictions")]
    if about is not None:
        rows += [("extractors", "; ".join(spec.extractor for spec in about.modalities))]
        rows += [("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items()))]
    cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return _section("Made by", f"<table>{cells}</table>")


def _section(title: str, content: str, note: str = "") -> str:
    return f"<section><h2>{title}</h2>{content}" + (f"<p class=note>{note}</p>" if note else "") + "</section>"


def _marked(sentiment: float | None, text: str = "&nbsp;&nbsp;&nbsp;") -> str:
    return f"<span class=w style='border-color:{_tint(sentiment)}'>{text}</span>"


def _tint(sentiment: float | None) -> str:
    """From red over grey to blue, which colour-blind readers can tell apart, too; white where there is none."""
    if sentiment is None:
        return "#fff"
    share = min(abs(sentiment) / 2.0, 1.0)
    end = (0, 114, 178) if sentiment > 0 else (213, 94, 0)
    mixed = [round(208 + (part - 208) * share) for part in end]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _tenth(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no negative zero


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
