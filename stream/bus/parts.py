"""Partial predictions: selected fields at a limited rate, as a subscriber requests by topic.

`part/<session>/<hz>/<fields>`, see `stream/protocol.md`. Each part is derived from the prediction on demand, so
nothing is encoded without a subscriber.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from mien.clock import NS_PER_S
from mien.errors import InputError
from mien.messages import Prediction
from mien.stream.bus.limits import NAME, check_prediction
from mien.stream.bus.wire import VERSION_BYTE, Frames, open_frames, parse

KIND = b"part/"
ALWAYS = ("session", "run", "seq", "t_end_ns")
FIELDS = tuple(name for name in Prediction.__struct_fields__ if name not in ALWAYS)
MOST_SESSIONS = 1024  # whose rates are tracked
_RATE = re.compile(r"(0|[1-9][0-9]{0,3})(\.[0-9]{1,3})?")
_JITTER = 0.85  # as for the pace of predictions itself
_NOTHING: dict[str, Any] = {
    "sentiment": None, "sentiment_smooth": None, "emotions": None, "confidence": None, "gates": {}, "age_ms": {}
}  # fmt: skip
_encode = msgspec.json.Encoder().encode


def part_topic(session: str | None, fields: Collection[str] | None, rate_hz: float | None) -> bytes:
    """The topic for fields of a session's predictions; None: all sessions, all fields, every prediction.

    Raises:
        InputError: there is no such field, or the rate is invalid.
    """
    if isinstance(fields, str):
        raise InputError(f"fields is a list of names, for instance [{fields!r}]")
    unknown = sorted(set(fields or ()) - {*FIELDS, *ALWAYS})
    if unknown:
        raise InputError(f"a prediction has no field {unknown[0]!r}; it has {', '.join(FIELDS)}")
    if rate_hz is not None and not 0.001 <= rate_hz < 10_000:
        raise InputError(f"rate_hz is 0.001 to 9999 predictions a second, not {rate_hz!r}")
    chosen = FIELDS if fields is None else [name for name in FIELDS if name in fields]
    named = "*" if fields is None else ",".join(chosen)
    rate = "0" if rate_hz is None else f"{rate_hz:.3f}".rstrip("0").rstrip(".")
    return KIND + f"{session or '*'}/{rate}/{named}".encode()


class Part:
    """What one topic requests."""

    def __init__(self, topic: bytes, session: str, rate_hz: float, fields: tuple[str, ...]) -> None:
        self._topic, self._session, self._fields = topic, session, (*ALWAYS, *fields)
        self._interval_ns = round(NS_PER_S / rate_hz * _JITTER) if rate_hz else 0
        self._sent_ns: dict[str, int] = {}

    def message(self, prediction: Prediction) -> Frames | None:
        """The part of a prediction to send; None if it is another session's, or too soon after the last one."""
        if self._session not in ("*", prediction.session):
            return None
        if self._interval_ns:
            elapsed_ns = prediction.t_end_ns - self._sent_ns.get(prediction.session, -self._interval_ns)
            if 0 <= elapsed_ns < self._interval_ns:
                return None
            if prediction.session not in self._sent_ns and len(self._sent_ns) >= MOST_SESSIONS:
                self._sent_ns.clear()
            self._sent_ns[prediction.session] = prediction.t_end_ns
        return [self._topic, VERSION_BYTE, _encode({name: getattr(prediction, name) for name in self._fields})]


def read_part(topic: bytes) -> Part | None:
    """The part requested by a subscriber's topic; None if it is not one."""
    parts = topic.decode("ascii", "replace").split("/")
    if len(parts) != 4:
        return None
    _, session, rate, named = parts
    fields = FIELDS if named == "*" else tuple(filter(None, named.split(",")))
    if session != "*" and not NAME.fullmatch(session):
        return None
    if not _RATE.fullmatch(rate) or not set(fields) <= set(FIELDS) or len(set(fields)) != len(fields):
        return None
    return Part(topic, session, float(rate), fields)


def decode_part(frames: Frames) -> Prediction:
    """A part as a prediction with all other fields None or empty. Raises WireError."""
    _, payload = open_frames(frames)
    part, prediction = parse(_decode, payload)
    check_prediction(prediction)
    top = part.get("top_emotion")
    if prediction.emotions is None and isinstance(top, str) and len(top) <= 64:
        msgspec.structs.force_setattr(prediction, "top_emotion", top)
    return prediction


def _decode(payload: bytes) -> tuple[dict[str, Any], Prediction]:
    part: dict[str, Any] = msgspec.json.decode(payload, type=dict[str, Any])
    return part, msgspec.convert({**_NOTHING, **part}, Prediction)
