"""The page: what stands where. What it shows comes over the feed, see `static/dashboard.js`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nicegui import ui

from mien.messages import EMOTIONS
from mien.stream.dashboard.history import MODALITIES

_NAMES = {"vision": "Face", "audio": "Voice", "text": "Words"}
_PAIRS = (("age", "age"), ("fps", "rate"), ("drops", "drops"))
_MODEL = (
    ("rate", "predictions"),
    ("end", "end to end p50 / p99"),
    ("drops", "drops"),
    ("engine", "engine"),
    ("software", "software p50 / p99"),
    ("model", "model"),
)


_EXPLANATIONS = (
    (
        "The numbers",
        "They describe the last five seconds: what the face, the voice and the words express, as people labelled it in"
        " recordings. They do not say what a person feels. Sentiment goes from −3 (negative) to +3 (positive);"
        " “sure” is the probability that the top emotion is right; the shares say how much the face, the voice and the"
        " words counted.",
    ),
    (
        "What leaves this machine",
        "Nothing. Pictures reach this page only while it is open, and nothing is kept unless you record.",
    ),
    (
        "Where it comes from",
        "This page listens on {endpoint}. When nothing comes, start mien run or mien demo on that port. Camera and"
        " microphone are chosen below the picture; of several faces, a click on one follows it.",
    ),
    (
        "A resting face",
        "Many faces and voices are called something when nothing is going on. mien calibrate NAME, in a terminal,"
        " measures yours at rest, as the button below the devices does; mien run --person NAME takes that away and says"
        " so beside the model.",
    ),
    (
        "The law",
        "People must be told that an emotion recognition system is in use; at work and in education it is prohibited in"
        " the European Union, except for medical or safety reasons.",
    ),
    (
        "Keys",
        "Space: look back, and return. ← → move, with Shift by a second. B, E and a digit or letter label a stretch"
        " while a recording is made; Z takes the last label back. ? opens this panel, Esc closes it.",
    ),
)


def build_page(version: str) -> None:
    """Lay out one page. `version` makes browsers fetch files anew that have changed."""
    ui.add_head_html(
        f'<link rel="stylesheet" href="/assets/dashboard.css?{version}">'
        f'<script src="/assets/theme.js?{version}"></script><script>document.documentElement.lang = "en";</script>'
    )
    with _box("div", "m-page"):
        _head()
        with _box("div", "m-grid"):
            with _box("div", "m-column"):
                _picture()
                _sound()
                _devices()
                _now()
            with _box("div", "m-column"):
                _timeline()
                with (
                    _panel("Words", "in the colour of the sentiment of each phrase"),
                    _box("div", "m-words"),
                ):
                    _box("div", "m-said js-said")
        _facts()
    _dialog()
    _calibration()
    _help()
    ui.add_body_html(f'<script type="module" src="/assets/dashboard.js?{version}"></script>')


def _head() -> None:
    with _box("header", "m-head"):
        _text("h1", "mien", "m-mark")
        _box("div", "m-badges js-badges").props('role="status" aria-live="polite"')
        _box("span", "m-source js-source")
        with _box("div", "m-tools"):
            _text("a", "Sessions", "m-button js-sessions").props('href="/sessions" hidden title="all sessions"')
            _button("Pause", "js-pause").props('aria-pressed="false" title="look back over the last minutes (Space)"')
            _button("Record", "js-record is-rec").props('aria-pressed="false" hidden')
            _button("◐", "js-theme").props('title="light or dark" aria-label="light or dark"')
            _button("?", "js-help").props('title="what this shows (?)" aria-label="what this page shows"')


def _picture() -> None:
    with _box("section", "m-panel m-picture").props('aria-label="picture"'):
        with _box("div", "m-screen"):
            _box("canvas", "js-canvas")
            with _box("div", "m-note"):
                _box("span", "js-note")
                with _box("span", "m-eyes"):
                    _text("button", "Mirror", "m-eye js-mirror").props(
                        'type="button" aria-pressed="false" title="only on this page; nothing that is measured changes"'
                    )
                    _text("button", "Hide picture", "m-eye js-eye").props('type="button"')
        with _box("div", "m-faces js-faces").props('role="toolbar" aria-label="the face that is followed" hidden'):
            _box("span", "js-faces-said").props('role="status"')
            _box("span", "m-eyes js-faces-choices")


def _sound() -> None:
    with _box("div", "m-panel m-sound"):
        _text("span", "sound", "")
        with _box("div", "m-level").props('role="img" aria-label="sound level"'):
            _box("i", "js-level")
        _box("span", "js-heard").props('role="status"')


def _devices() -> None:
    """What is captured; hidden where the page may not choose it."""
    with _box("section", "m-panel m-devices js-devices").props('aria-label="camera and microphone" hidden'):
        for worker, name in (("video", "Camera"), ("audio", "Microphone")):
            with _box("label", f"js-pick-{worker}"):
                _text("span", name, "")
                _box("select", "m-select")
        _box("p", "js-devices-said").props('role="status"')
        _button("Measure a resting face …", "js-calibrate")


def _now() -> None:
    with _panel("Sentiment"):
        with _box("div", "m-headline"):
            _text("span", "–", "m-number js-number")
            _text("span", "", "m-word js-word")
        with _box("div", "m-scale"):
            _box("i", "js-fill")
        with _box("div", "m-ends"):
            _text("span", "−3 negative", "")
            _text("span", "positive +3", "")
        _box("div", "m-rule")
        with _box("div", "m-top"):
            _text("b", "–", "js-top")
            _text("span", "", "js-confidence")
        for name in EMOTIONS:
            _bar(name, f"var(--{name})", "js-emotion")
        _box("div", "m-rule")
        _text("h2", "Share in the decision", "m-title")
        for modality in MODALITIES:
            _bar(_NAMES[modality].lower(), f"var(--{modality})", "js-gate")


def _timeline() -> None:
    with _box("section", "m-panel m-timeline").props('aria-label="the last minute"'):
        _box("p", "m-empty js-empty").props("hidden")
        ui.echart({"series": []}).classes("m-chart")
        _box("div", "m-tip js-tip").props("hidden")
        with _box("div", "m-legend"):
            for name in EMOTIONS:
                with _box("span", ""):
                    _box("i", "").style(f"background: var(--{name})")
                    _text("span", name, "")
        with _box("div", "m-foot"):
            with _box("div", "m-scrub js-scrub").props("hidden"):
                _text("span", "", "js-ago")
                _box("input", "js-slider").props('type="range" min="-1" max="0" step="10" aria-label="moment"')
                _text("span", "when you paused", "")
            _box("div", "m-keys js-keys")
            _box("div", "m-labels js-labels").props('role="toolbar" aria-label="label a stretch" hidden')
        with _text("details", "", "m-table js-details"):
            _text("summary", "These values as a table", "")
            _box("div", "js-table")


def _facts() -> None:
    with _box("section", "m-panel m-facts").props('aria-label="processes"'):
        for modality in MODALITIES:
            _fact(_NAMES[modality], "slot", _PAIRS, modality)
        _fact("Model", "model", _MODEL)


def _fact(title: str, kind: str, pairs: Sequence[tuple[str, str]], modality: str = "") -> None:
    with _box("div", "m-fact").props(f'data-fact="{modality}"' if modality else ""):
        with _box("h3", ""):
            if modality:
                _box("i", "").style(f"background: var(--{modality})")
            _text("span", title, "")
            _text("em", "", "").props(f'data-{kind}="state"')
        with _box("dl", ""):
            for slot, name in pairs:
                with _box("div", ""):
                    _text("dt", name, "")
                    _text("dd", "–", "").props(f'data-{kind}="{slot}"')
        _text("p", "", "").props(f'data-{kind}="note"')


def _dialog() -> None:
    with _box("dialog", "m-dialog js-dialog"):
        _text("h2", "Record this session?", "")
        _text("p", "", "js-kept")
        for name in ("video", "audio"):
            with _box("label", ""):
                _box("input", f"js-{name}").props('type="checkbox"')
                _text("span", "", "")
        with _box("footer", ""):
            _button("Cancel", "js-cancel")
            _button("Start recording", "js-start is-rec")


def _calibration() -> None:
    with _box("dialog", "m-dialog m-calibration js-calibration").props('aria-labelledby="calibration-title"'):
        _text("h2", "How you look and sound at rest", "").props('id="calibration-title"')
        with _box("div", "js-before"):
            _text(
                "p",
                "Fifteen seconds with a calm face, reading two sentences aloud. Only means of features are kept, in a"
                " file on this machine that you alone can read; no picture and no sound. It is used only where a"
                " session is started with --person and the name, and then said beside the model.",
                "",
            )
            with _box("label", "m-field"):
                _text("span", "Name", "")
                _box("input", "js-person").props('value="me" maxlength="32" autocomplete="off" spellcheck="false"')
            for worker, name in (("video", "The face"), ("audio", "The voice")):
                with _box("label", ""):
                    _box("input", f"js-of-{worker}").props('type="checkbox" checked')
                    _text("span", name, "")
            _box("div", "js-people m-people")
        with _box("div", "m-measuring js-measuring").props("hidden"):
            _box("p", "js-instruction")
            _box("p", "m-read js-read")
            _box("div", "m-countdown js-countdown").props('role="timer" aria-label="seconds left"')
        _box("p", "js-calibration-said").props('role="status"')
        with _box("footer", ""):
            _button("Close", "js-calibration-close")
            _button("Start", "js-calibration-start")


def _help() -> None:
    with _box("dialog", "m-dialog m-help js-help-dialog").props('aria-labelledby="help-title"'):
        _text("h2", "What this page shows", "").props('id="help-title"')
        for title, text in _EXPLANATIONS:
            _text("h3", title, "")
            with _box("p", ""):
                before, _, after = text.partition("{endpoint}")
                _text("span", before, "")
                if after:
                    _box("span", "js-endpoint")
                    _text("span", after, "")
        with _box("footer", ""):
            _button("Close", "js-help-close").props("autofocus")


@contextmanager
def _panel(title: str, note: str = "") -> Iterator[None]:
    with _box("section", "m-panel"):
        with _text("h2", title, "m-title"):
            if note:
                _text("small", note, "")
        yield


def _bar(name: str, colour: str, kind: str) -> None:
    with _box("div", f"m-bar {kind}"):
        _text("span", name, "")
        with _box("div", ""):
            _box("i", "").style(f"background: {colour}")
        _text("span", "–", "")


def _button(text: str, classes: str) -> Any:
    return _text("button", text, f"m-button {classes}").props('type="button"')


def _text(tag: str, text: str, classes: str) -> Any:
    element = _box(tag, classes)
    element._text = text
    return element


def _box(tag: str, classes: str) -> Any:
    return ui.element(tag).classes(classes)
