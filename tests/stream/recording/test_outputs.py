"""Exports, report and comparison of a recording: the same numbers everywhere."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from mien.cli import app
from mien.clock import NS_PER_S
from mien.errors import FileError, RecordingError
from mien.messages import EMOTIONS, Phrase, Prediction
from mien.stream.recording.comparison import compare, draw_comparison
from mien.stream.recording.export import export, subtitles
from mien.stream.recording.table import Table, read_table, summarise
from tests.stream.recording.sessions import START_NS, live, write


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("recording") / "talk <1>.mcap", live(12))


@pytest.fixture(scope="module")
def table(path: Path) -> Table:
    return read_table(path)


def recorded() -> list[Prediction]:
    return [what for _, what in live(12) if isinstance(what, Prediction)]


def test_the_csv_has_every_prediction_and_exact_numbers(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(export(table, "csv"))))
    predictions = recorded()
    assert len(rows) == len(predictions)
    for row, prediction in zip(rows, predictions, strict=True):
        assert float(row["sentiment"]) == prediction.sentiment
        assert int(row["t_end_ns"]) == prediction.t_end_ns
        assert prediction.emotions is not None
        assert float(row["happy"]) == prediction.emotions["happy"]
        assert float(row["gate_vision"]) == prediction.gates["vision"]
        assert row["absent_text"] == prediction.absent.get("text", "")
        assert (row["age_ms_text"] == "") == (prediction.age_ms["text"] is None)


def test_export_says_when_the_recording_was_cut_off(path: Path, tmp_path: Path) -> None:
    cut, out = tmp_path / "cut.mcap", tmp_path / "cut.csv"
    cut.write_bytes(path.read_bytes()[:-1000])
    for recording, said in ((path, ""), (cut, f"{cut} was cut off; exporting what it holds\n")):
        ran = CliRunner().invoke(app, ["export", str(recording), "--out", str(out)])
        assert (ran.exit_code, ran.stderr) == (0, said)
    assert len(out.read_text().splitlines()) > 100


def test_json_has_the_same_values_and_a_summary(table: Table) -> None:
    content = json.loads(export(table, "json"))
    assert [row["sentiment"] for row in content["predictions"]] == [p.sentiment for p in recorded()]
    assert content["about"]["label"] == "talk.mp4"
    assert content["summary"] == json.loads(json.dumps(summarise(table)))
    made = [row for row in content["predictions"] if row["emotions"]]
    summary = content["summary"]
    assert summary["emotions"]["happy"] == pytest.approx(sum(row["emotions"]["happy"] for row in made) / len(made))
    assert sum(summary["emotions"].values()) == pytest.approx(1)
    assert sum(summary["gates"].values()) == pytest.approx(1)
    with_words = sum(row["gates"]["text"] > 0 for row in content["predictions"])
    assert summary["coverage"]["text"] == pytest.approx(with_words / len(content["predictions"]))


def test_words_appear_once_in_consecutive_subtitles(table: Table) -> None:
    words = [word.text for word in table.words]
    assert len(words) == len(set(words)) > 8
    shown = list(subtitles(table))
    assert [word.text for _, _, group in shown for word in group] == words
    assert all(start_s < end_s for start_s, end_s, _ in shown)
    assert all(a[1] <= b[0] for a, b in pairwise(shown))
    srt, vtt = export(table, "srt"), export(table, "vtt")
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\n\[[+-]\d\.\d \w+\] word0\.\n", srt)
    assert vtt.startswith("WEBVTT\n\nSTYLE\n")
    assert vtt.count(" --> ") == srt.count(" --> ") == len(shown)
    assert "[-0.0" not in srt


def test_words_and_subtitles_have_the_sentiment_of_their_phrase(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mien.stream.recording.report import report

    def with_phrase(what: Prediction) -> Prediction:
        phrases = [
            Phrase(w.t_start_ns, w.t_end_ns, -2.0 if int(w.text[4:-1]) % 2 else 0.125, "sad") for w in what.words
        ]
        return msgspec.structs.replace(what, phrases=tuple(phrases))

    events = [(t, with_phrase(what) if isinstance(what, Prediction) else what) for t, what in live(12)]
    table = read_table(write(tmp_path / "a.mcap", events))
    assert len(table.words) > 8
    assert all(word.sentiment == (-2.0 if int(word.text[4:-1]) % 2 else 0.125) for word in table.words)
    labels = re.findall(r"\[(\S+) sad\] word(\d+)\.", export(table, "srt"))
    assert len(labels) == len(table.words)
    assert all(label == ("-2.0" if int(number) % 2 else "+0.1") for label, number in labels)
    assert report(table).count("border-color:#d55e00'>word") == sum(int(number) % 2 for _, number in labels)


class _Page(HTMLParser):
    """Texts of a page, and everything that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [str(values[name]) for name in ("src", "href", "data") if values.get(name)]
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_one_page_with_the_numbers_of_the_export(path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mien.stream.recording.report import report

    table = read_table(path)
    html = report(table)
    page = _Page()
    page.feed(html)
    assert [name for name in page.loads if not name.startswith("#")] == []
    assert "url(http" not in html
    text = "".join(page.text)
    summary = json.loads(export(table, "json"))["summary"]
    for expected in (
        f"{summary['sentiment']['mean']:+.2f}",
        f"{summary['sentiment']['min']:+.1f} … {summary['sentiment']['max']:+.1f}",
        f"{summary['predictions']} predictions",
        f"{summary['confidence']:.0%}",
        f"{summary['coverage']['text']:.1%}",
        f"{summary['gates']['vision']:.1%}",
        f"p99 {summary['latency_ms']['p99']:.1f} ms",
        "talk <1>.mcap",
        "word3.",
    ):
        assert expected in text, expected
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) == 3
    names: list[str] = []
    for picture in pictures:
        ElementTree.fromstring(picture.replace("&nbsp;", " "))
        names += re.findall(r'\bid="([^"]+)"', picture)
    parts = [name for name in names if re.fullmatch(r"[pmC][0-9a-f]{8,}", name)]
    assert len(parts) == len(set(parts)) > 0, "two pictures on the page share the name of a part"


def test_a_session_without_any_evidence_has_a_report_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mien.stream.recording.report import report

    nothing = [
        (t_ns, msgspec.structs.replace(
            what, sentiment=None, sentiment_smooth=None, emotions=None, confidence=None, abstains="nobody", latency={},
            gates=dict.fromkeys(what.gates, 0.0), words=(),
        ))
        for t_ns, what in live(3) if isinstance(what, Prediction)
    ]  # fmt: skip
    table = read_table(write(tmp_path / "a.mcap", nothing))
    assert "There were no predictions" in report(table)
    assert summarise(table)["sentiment"] is None
    assert export(table, "srt") == ""


def test_a_recording_without_predictions_is_one_clear_line(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.mcap", [])
    with pytest.raises(RecordingError, match="holds no predictions"):
        read_table(empty)


def test_a_recording_compared_with_itself_and_with_another_model(path: Path, tmp_path: Path) -> None:
    same = compare(path, path)
    assert same["bit_equal"] == same["instants"] == len(recorded())
    assert same["sentiment"]["largest_difference"] == 0
    assert same["same_top_emotion"] == 1

    def moved(what: Prediction) -> Prediction:
        assert what.sentiment is not None
        return msgspec.structs.replace(what, sentiment=what.sentiment / 2, model="other-2/torch-fp32")

    other = write(
        tmp_path / "other.mcap", [(t, moved(what) if isinstance(what, Prediction) else what) for t, what in live(12)]
    )
    figures = compare(path, other)
    assert figures["bit_equal"] == 0
    mean = fmean(what.sentiment for what in recorded() if what.sentiment is not None)
    assert figures["sentiment"]["mean_difference"] == pytest.approx(-mean / 2)
    assert figures["sentiment"]["correlation"] == pytest.approx(1.0)
    assert figures["second"]["models"] == ["other-2/torch-fp32"]
    pytest.importorskip("matplotlib")
    draw_comparison(path, other, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecordingError, match="cannot write"):
        draw_comparison(path, other, tmp_path / "nowhere" / "plot.png")


def predicted(path: Path, shift: float = 0.0, as_json: bool = False) -> Path:
    """A table as `mien predict` writes it, of two clips."""
    columns = [
        "clip",
        "t_s",
        "sentiment",
        "emotion",
        *EMOTIONS,
        "confidence",
        "gate_text",
        "gate_audio",
        "words",
        "model",
    ]
    rows: list[dict[str, object]] = []
    for clip in ("a.mp4", "b.mp4"):
        rows.append({"clip": clip, "t_s": 0.5, "words": ""})  # nothing was observed yet
        for k in range(1, 5):
            shares = dict.fromkeys(EMOTIONS, 0.1) | {"sad": 0.4 - 0.01 * k}
            rows.append({
                "clip": clip, "t_s": 0.5 + 0.5 * k, "sentiment": 0.2 * k + shift, "emotion": "sad", **shares,
                "confidence": 0.4, "gate_text": 0.25, "gate_audio": 0.75, "words": "so sad", "model": f"m{shift}",
            })  # fmt: skip
    if as_json:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    return path


def test_two_outputs_of_predict_are_compared(tmp_path: Path) -> None:
    first, second = predicted(tmp_path / "a.csv"), predicted(tmp_path / "b.jsonl", 0.5, as_json=True)
    figures = compare(first, second)
    assert figures["instants"] == 10, "each instant of each clip"
    assert figures["sentiment"]["mean_difference"] == pytest.approx(0.5)
    assert figures["sentiment"]["correlation"] == pytest.approx(1.0)
    assert figures["second"]["models"] == ["m0.5"]
    assert figures["bit_equal"] == 2, "where both abstain"
    assert compare(first, first)["bit_equal"] == 10
    pytest.importorskip("matplotlib")
    draw_comparison(first, second, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "bad.csv").write_text("clip,t_s,sentiment\na,soon,1\n")
    with pytest.raises(RecordingError, match="row 1"):
        compare(first, tmp_path / "bad.csv")


def late(seconds: float) -> list[tuple[int, Any]]:
    """A session recorded from so many seconds on."""
    return [(t_ns, what) for t_ns, what in live(seconds + 6) if t_ns > START_NS + seconds * NS_PER_S]


def test_earlier_words_are_not_in_subtitles(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "late.mcap", late(6)))
    assert table.rows[0].transcript, "earlier words are in its first window"
    begins = [start_s for start_s, _, _ in subtitles(table)]
    assert len(begins) == len(set(begins)) > 2
    assert all(word.t_end_s > 0 for word in table.words)


def test_report_has_the_date_of_the_recording(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mien.stream.recording.report import report

    day_ns = 24 * 3600 * NS_PER_S
    messages = [
        (t_ns + day_ns, msgspec.structs.replace(what, t_end_ns=what.t_end_ns + day_ns))
        for t_ns, what in late(1) if isinstance(what, Prediction)
    ]  # fmt: skip
    page = report(read_table(write(tmp_path / "late.mcap", messages)))
    begun = datetime.fromtimestamp(START_NS / 1e9, UTC)
    assert f"{begun + timedelta(days=1):%Y-%m-%d}" in page
    assert f"{begun:%Y-%m-%d}" not in page


def test_two_sessions_that_share_nothing_cannot_be_compared(path: Path, tmp_path: Path) -> None:
    predictions = [(t, what) for t, what in live(2) if isinstance(what, Prediction)]
    later = [(t, msgspec.structs.replace(what, t_end_ns=what.t_end_ns + 1)) for t, what in predictions]
    with pytest.raises(RecordingError, match="no instant in common"):
        compare(path, write(tmp_path / "later.mcap", later))


@pytest.mark.parametrize(
    "command",
    [["report", "-o"], ["export", "-o"], ["compare", "--plot"]],
    ids=["report", "export", "compare"],
)
def test_input_is_not_overwritten(tmp_path: Path, command: list[str]) -> None:
    path = write(tmp_path / "talk.mcap", live(3))
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    name, option = command
    result = CliRunner().invoke(app, [name, *[str(path)] * (1 + (name == "compare")), option, str(tmp_path / "link")])
    assert isinstance(result.exception, FileError)
    assert "is used by this command already" in str(result.exception)
    assert path.read_bytes() == before
