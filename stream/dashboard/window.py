"""A compact dashboard in an OpenCV window: for machines with a screen but no browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np

from mien.config import Config
from mien.errors import SourceError
from mien.messages import EMOTIONS, MODALITY_NAMES, Prediction, UInt8
from mien.stream.bus.preview import Preview
from mien.stream.dashboard import view
from mien.stream.dashboard.collector import Collector
from mien.stream.dashboard.history import MODALITIES
from mien.stream.dashboard.screen import has_screen

Colour = tuple[int, int, int]  # BGR

WIDTH, HEIGHT = 1000, 480
_PICTURE = 480, 360
_RIGHT = 510  # x position of the numbers
_TITLE = "mien"
_FPS = 15
_CLIENT = -1
_FONT = cv2.FONT_HERSHEY_DUPLEX
_GROUND, _INK, _SOFT, _TRACK = (20, 17, 14), (239, 236, 233), (176, 165, 154), (46, 40, 34)
_NEGATIVE, _POSITIVE, _WARN = (95, 121, 229), (136, 189, 87), (96, 193, 240)
_EMOTION: dict[str, Colour] = {
    "neutral": (145, 135, 125),
    "happy": (47, 173, 224),
    "sad": (218, 146, 91),
    "angry": (88, 97, 221),
    "fear": (214, 123, 157),
    "disgust": (74, 169, 151),
    "surprise": (179, 139, 225),
}
_MODALITY: dict[str, Colour] = {"vision": (148, 135, 43), "audio": (171, 188, 68), "text": (210, 221, 169)}


def show_window(config: Config, session: str | None, is_stopping: Callable[[], bool]) -> None:
    """Show a running mien in a window until stopped, closed, or Esc is pressed.

    Raises:
        SourceError: there is no screen.
    """
    if not has_screen():
        raise SourceError("there is no screen for a window; use mien dashboard, or mien watch in a terminal")
    collector = Collector(config.bus, session, minutes=1.0)
    collector.start()
    try:
        cv2.namedWindow(_TITLE, cv2.WINDOW_AUTOSIZE)
        while not is_stopping():
            begun_s = time.monotonic()
            with collector.lock:
                collector.watch(_CLIENT, picture=True)
                image = draw(collector)
            cv2.imshow(_TITLE, image)
            left_ms = 1000 / _FPS - (time.monotonic() - begun_s) * 1000
            if cv2.waitKey(max(1, int(left_ms))) == 27 or cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1:
                break
    except cv2.error as error:
        raise SourceError(f"no window can be opened here ({error.err}); use mien dashboard") from error
    finally:
        collector.stop()
        cv2.destroyAllWindows()


def draw(collector: Collector) -> UInt8:
    """The window's content, (480, 1000, 3) BGR. Call with the collector's lock held."""
    image = np.full((HEIGHT, WIDTH, 3), _GROUND, np.uint8)
    fresh = not collector.is_stale
    prediction = collector.prediction if fresh else None
    picture = collector.preview if collector.preview_age_s() <= view.PICTURE_S else None
    image[: _PICTURE[1], : _PICTURE[0]] = _framed(picture, collector.edges)
    _badges(image, view.badges(collector, recording=False), view.source(collector))
    _sentiment(image, prediction, [row[2] for row in list(collector.history.rows)[-600:]] if fresh else [])
    shares = prediction.emotions if prediction is not None else None
    for index, name in enumerate(EMOTIONS):
        _bar(image, 178 + 21 * index, name, shares.get(name) if shares else None, _EMOTION[name])
    for index, modality in enumerate(MODALITIES):
        gate = prediction.gates.get(modality, 0.0) if prediction is not None and shares else None
        _bar(image, 340 + 21 * index, MODALITY_NAMES[modality], gate, _MODALITY[modality])
    _words(image, prediction)
    _figures(image, collector)
    return image


def _framed(preview: Preview | None, edges: list[int]) -> UInt8:
    """The framed picture, with the mesh of the same moment."""
    frame = np.zeros((_PICTURE[1], _PICTURE[0], 3), np.uint8)
    if preview is None:
        _put(frame, "waiting for the picture", 150, 185, _SOFT, 0.5)
        return frame
    scale = min(_PICTURE[0] / preview.width, _PICTURE[1] / preview.height)
    width, height = round(preview.width * scale), round(preview.height * scale)
    left, top = (_PICTURE[0] - width) // 2, (_PICTURE[1] - height) // 2
    if preview.jpeg:
        decoded = cv2.imdecode(np.frombuffer(preview.jpeg, np.uint8), cv2.IMREAD_COLOR)
        if decoded is not None:
            frame[top : top + height, left : left + width] = cv2.resize(decoded, (width, height))
    if len(preview.landmarks) and edges:
        points = np.round(preview.landmarks * (width, height) + (left, top)).astype(np.int32)
        pairs = np.asarray(edges, np.int64).reshape(-1, 2)
        pairs = pairs[(pairs < len(points)).all(axis=1)]
        mesh = frame.copy()
        cv2.polylines(mesh, list(points[pairs]), False, (236, 248, 190), 1, cv2.LINE_AA)
        frame = np.asarray(cv2.addWeighted(mesh, 0.45, frame, 0.55, 0), np.uint8)
    return frame


def _badges(image: UInt8, badges: list[view.Badge], source: str) -> None:
    x = _RIGHT
    for kind, text in badges:
        colour = _WARN if kind in ("STALE", "ABSTAINS") else _POSITIVE
        x = _put(image, _plain(text)[:44], x, 30, colour, 0.5) + 16
    _put(image, _plain(source)[:40], x, 30, _SOFT, 0.45)


def _sentiment(image: UInt8, prediction: Prediction | None, values: list[float | int | None]) -> None:
    value = prediction.sentiment_smooth if prediction is not None else None
    colour = _SOFT if value is None else _NEGATIVE if value < 0 else _POSITIVE
    _put(image, "--" if value is None else f"{value:+.2f}", _RIGHT, 88, colour, 1.2)
    left, top, width, height = _RIGHT + 140, 50, WIDTH - _RIGHT - 160, 90
    middle = top + height // 2
    cv2.line(image, (left, middle), (left + width, middle), _TRACK, 1)
    step = width / 600
    shown = [(i + 600 - len(values), v) for i, v in enumerate(values)]
    for (x0, y0), (x1, y1) in pairwise(shown):
        if y0 is not None and y1 is not None:
            ends = [(round(left + x * step), round(middle - y * height / 6)) for x, y in ((x0, y0), (x1, y1))]
            cv2.line(image, ends[0], ends[1], _NEGATIVE if y1 < 0 else _POSITIVE, 1, cv2.LINE_AA)
    if prediction is not None and prediction.confidence is not None:
        text = f"{prediction.top_emotion}, {prediction.confidence:.0%} sure"
        _put(image, text, _RIGHT, 128, _INK, 0.5)


def _bar(image: UInt8, y: int, name: str, share: float | None, colour: Colour) -> None:
    left, width = _RIGHT + 90, WIDTH - _RIGHT - 170
    _put(image, name, _RIGHT, y + 5, _SOFT, 0.45)
    cv2.rectangle(image, (left, y - 4), (left + width, y + 4), _TRACK, -1)
    if share is not None:
        cv2.rectangle(image, (left, y - 4), (left + round(width * min(share, 1.0)), y + 4), colour, -1)
    _put(image, "--" if share is None else f"{share:4.0%}", left + width + 12, y + 5, _SOFT, 0.45)


def _words(image: UInt8, prediction: Prediction | None) -> None:
    if prediction is None or not prediction.words:
        _put(image, "no words in the last seconds", 14, 396, _SOFT, 0.5)
        return
    words = list(prediction.words)
    while sum(len(word.text) + 1 for word in words) > 52:
        words.pop(0)
    x = 14
    for word in words:
        x = _put(image, _plain(word.text.strip()), x, 396, _INK if word.committed else _SOFT, 0.5) + 8


def _figures(image: UInt8, collector: Collector) -> None:
    facts = view.facts(collector)
    model = facts["model"]
    latency = "p50 {:.0f}  p99 {:.0f} ms".format(*model["end_to_end"]) if model["end_to_end"] else "no latency yet"
    line = f"{model['per_second']:.1f} predictions/s   end to end {latency}   {model['checkpoint']} {model['engine']}"
    _put(image, line, 14, 434, _SOFT, 0.45)
    parts = []
    for modality in MODALITIES:
        fact = facts[modality]
        age = "--" if fact["age_ms"] is None else f"{fact['age_ms']} ms"
        parts.append(f"{MODALITY_NAMES[modality]}: {fact['state']}, {age} old, {fact['drops'] or 0} drops")
    _put(image, "   ".join(parts), 14, 462, _SOFT, 0.42)


def _put(image: UInt8, text: str, x: int, y: int, colour: Colour, size: float) -> int:
    """Draw text; returns the x position of its end."""
    cv2.putText(image, text, (x, y), _FONT, size, colour, 1, cv2.LINE_AA)
    return x + int(cv2.getTextSize(text, _FONT, size, 1)[0][0])


def _plain(text: str) -> str:
    """Reduce text to ASCII, which is all that OpenCV's fonts support."""
    return text.replace("·", "-").encode("ascii", "replace").decode()
