"""Lab Streaming Layer: two streams a session, on LSL's clock.

`mien-prediction` has one float channel per number of a prediction, NaN if missing. `mien-marker` has one string
channel: `word:<text>` for each committed word at the end of its sound, and `status:<worker>:<state>` for each change.

Timestamps are capture times. LSL's clock is this host's monotonic clock; a session's offset from it is measured by
the exchange of `mien.stream.bus.clock_exchange`, even if the session runs on another host.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pylsl

from mien.clock import NS_PER_S, Clock
from mien.errors import WireError
from mien.messages import EMOTIONS, MODALITIES, Prediction, Status
from mien.stream.bridges.feed import Counts, Event
from mien.stream.bus.clock_exchange import ClockExchange
from mien.stream.bus.sockets import Receiver

# Name, unit and kind of each channel of `mien-prediction`.
CHANNELS = (
    ("sentiment", "-3..3", "Valence"),
    ("sentiment_smooth", "-3..3", "Valence"),
    ("confidence", "probability", "Confidence"),
    *((f"emotion.{name}", "probability", "Emotion") for name in EMOTIONS),
    *((f"share.{name}", "fraction", "Share") for name in MODALITIES),
    *((f"age.{name}", "milliseconds", "Age") for name in MODALITIES),
)
_MAX_SESSIONS = 64


class LslOutlet:
    """Streams of every session on the bus, created at its first prediction or status.

    Args:
        endpoint, keys: of the session's inference process, to measure its clock offset.
    """

    def __init__(self, endpoint: str, counts: Counts, keys: str | Path = "") -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._counts = counts
        self._sessions: dict[str, _Session] = {}

    def send(self, event: Event) -> None:
        """Push a sample; without an inlet LSL discards it."""
        session = self._sessions.get(event.session)
        if session is None:
            if len(self._sessions) >= _MAX_SESSIONS:
                self._counts.dropped += 1
                return
            session = self._sessions[event.session] = _Session(event.session, self._endpoint, self._keys)
            self._counts.connects += 1
        self._counts.sent += session.push(event)

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()


class _Session:
    """The two streams of one session, and the offset of its clock."""

    def __init__(self, name: str, endpoint: str, keys: str | Path) -> None:
        self._predictions = pylsl.StreamOutlet(_prediction_info(name))
        self._markers = pylsl.StreamOutlet(
            pylsl.StreamInfo("mien-marker", "Markers", 1, pylsl.IRREGULAR_RATE, "string", f"mien-marker-{name}")
        )
        self._clock = Clock()
        self._receiver = Receiver(endpoint, (), keys=keys)
        self._exchange = ClockExchange(self._receiver, name, self._clock)
        self._worded_ns = -1

    def push(self, event: Event) -> int:
        """Push samples and return how many."""
        pushed = self._push(event)
        # Last, so that the samples do not wait for it.
        self._exchange.tick()
        for frames in self._receiver.drain():
            with contextlib.suppress(WireError):
                self._exchange.receive(frames, self._clock.now_ns())
        return pushed

    def _push(self, event: Event) -> int:
        if isinstance(event, Status):
            self._markers.push_sample([f"status:{event.worker}:{event.state}"], self._lsl_time(event.t_ns))
            return 1
        self._predictions.push_sample(sample(event), self._lsl_time(event.t_end_ns))
        words = [
            word for word in event.words if word.committed and not word.uncertain and word.t_end_ns > self._worded_ns
        ]
        for word in words:
            self._worded_ns = word.t_end_ns
            self._markers.push_sample([f"word:{word.text}"], self._lsl_time(word.t_end_ns))
        return 1 + len(words)

    def close(self) -> None:
        self._receiver.close()

    def _lsl_time(self, t_ns: int) -> float:
        """Session time to LSL's clock, in s. Until the offset is measured, the current time is the best estimate."""
        estimate = self._exchange.estimate()
        now_s: float = pylsl.local_clock()
        if estimate is None:
            return now_s
        return now_s - (self._clock.now_ns() - (t_ns - estimate[0])) / NS_PER_S


def sample(prediction: Prediction) -> list[float]:
    """The channels of a prediction in the order of CHANNELS, NaN if missing."""
    emotions = prediction.emotions or {}
    values: list[float | None] = [prediction.sentiment, prediction.sentiment_smooth, prediction.confidence]
    values += [emotions.get(name) for name in EMOTIONS]
    values += [prediction.gates.get(name) for name in MODALITIES]
    values += [prediction.age_ms.get(name) for name in MODALITIES]
    return [math.nan if value is None else float(value) for value in values]


def _prediction_info(session: str) -> pylsl.StreamInfo:
    info = pylsl.StreamInfo(
        "mien-prediction", "Emotion", len(CHANNELS), pylsl.IRREGULAR_RATE, "float32", f"mien-prediction-{session}"
    )
    description = info.desc()
    description.append_child_value("manufacturer", "mien")
    description.append_child_value("session", session)
    channels = description.append_child("channels")
    for label, unit, kind in CHANNELS:
        channel = channels.append_child("channel")
        for key, value in (("label", label), ("unit", unit), ("type", kind)):
            channel.append_child_value(key, value)
    return info
