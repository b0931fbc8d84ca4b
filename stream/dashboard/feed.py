"""One browser's feed: it polls, and gets the newest state, at its own pace.

Nothing is queued for a browser. A stalled one has at most one answer in flight, and when it asks again it gets what
it missed, as far back as the history reaches. A question is JSON with the page's cursors; an answer is binary: the
length of the JSON (uint32, little-endian), the JSON, the landmarks as pairs of float32, the JPEG.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from typing import Any

import msgspec
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from mien.clock import NS_PER_MS
from mien.stream.bus.preview import Preview
from mien.stream.dashboard import view
from mien.stream.dashboard.collector import Collector
from mien.stream.dashboard.history import row_of, row_of_word
from mien.stream.dashboard.session_view import SessionView, SessionViews

INTERVAL_S = 1 / 15
_clients = itertools.count()


class Question(msgspec.Struct, frozen=True):
    """A page's state: cursors into the history, capture time (µs) of its picture, and what it displays.

    Attributes:
        picture: whether it shows the picture, or only the mesh.
        at: capture time in ms to look back to; None for live.
    """

    era: int = -1
    row: int = 0
    sound: int = 0
    words: int = -1
    edges: int = 0
    picture: bool = True
    drawn: int = 0
    at: int | None = None


_decode = msgspec.json.Decoder(Question).decode
_encode = msgspec.json.Encoder().encode


async def serve_feed(socket: WebSocket, viewed: SessionView, views: SessionViews, span_ms: int) -> None:
    """Answer one browser until it disconnects."""
    collector = viewed.collector
    await socket.accept()
    client = next(_clients)
    answered_s = 0.0
    try:
        while True:
            try:
                question = _decode(await socket.receive_text())
            except msgspec.MsgspecError:
                await socket.close(1003)
                return
            with collector.lock:
                collector.watch(client, question.picture)
            await asyncio.sleep(answered_s + INTERVAL_S - time.monotonic())
            answered_s = time.monotonic()
            with collector.lock:
                reply = answer(question, viewed, views.count, span_ms)
            await socket.send_bytes(reply)
    except (WebSocketDisconnect, RuntimeError):
        pass  # it disconnected, possibly in the middle of an answer
    finally:
        with collector.lock:
            collector.unwatch(client)


def answer(question: Question, viewed: SessionView, sessions: int, span_ms: int) -> bytes:
    """What is new for a page. `sessions`: their number. Call with the collector's lock held."""
    collector, recordings = viewed.collector, viewed.recordings
    history = collector.history
    known = question.era == history.era
    row = max(question.row, history.first_row) if known else history.first_row
    sound = max(question.sound, history.first_sound) if known else history.first_sound
    silent_s = collector.silent_s
    message: dict[str, Any] = {
        "era": history.era,
        "rows": list(itertools.islice(history.rows, row - history.first_row, None)),
        "row": history.first_row + len(history.rows),
        "sounds": list(itertools.islice(history.sound, sound - history.first_sound, None)),
        "sound": history.first_sound + len(history.sound),
        "words": history.words_version,
        "span_ms": span_ms,
        "now": row_of(collector.prediction) if collector.prediction is not None else None,
        "silent_ms": None if silent_s is None else round(silent_s * 1000),
        "stale": collector.is_stale,
        "badges": view.badges(collector, recordings.recording is not None),
        "source": view.source(collector),
        "origin": view.origin(collector),
        "endpoint": collector.endpoint,
        "facts": view.facts(collector),
        "sessions": sessions,
        "record": None if collector.is_elsewhere else recordings.state(view.shared(collector)),
        "choosers": viewed.control.workers,
        "labels": recordings.can_label,
        "marks": recordings.marks,
        "note": _note(question, collector),
    }
    if not known or question.words != history.words_version:
        message["transcript"] = {
            "said": [row_of_word(each.word, each.sentiment) for each in history.words],
            "tentative": [row_of_word(word) for word in history.tentative],
        }
    if not question.edges and collector.edges:
        message["edges"] = collector.edges
    preview = _picture(question, collector)
    blob = b""
    if preview is None:
        message["blank"] = True
    elif preview.t_ns // 1000 != question.drawn:
        jpeg = preview.jpeg if question.picture else b""
        message["picture"] = {
            "t_us": preview.t_ns // 1000,  # nanoseconds exceed JavaScript's exact integers
            "seq": preview.seq,
            "width": preview.width,
            "height": preview.height,
            "points": len(preview.landmarks),
            "faces": preview.faces.round(4).tolist(),
            "chosen": preview.chosen,
        }
        blob = np.ascontiguousarray(preview.landmarks, "<f4").tobytes() + jpeg
    text = _encode(message)
    return struct.pack("<I", len(text)) + text + blob


def _note(question: Question, collector: Collector) -> str:
    if question.at is None:
        return view.picture_note(collector, question.picture)
    return "" if _picture(question, collector) is not None else "no picture was kept: the page was not open then"


def _picture(question: Question, collector: Collector) -> Preview | None:
    if question.at is not None:
        return collector.history.picture_at(question.at * NS_PER_MS)
    return collector.preview if collector.preview_age_s() <= view.PICTURE_S else None
