"""Overview of all sessions at an address, for the page that lists them: a fleet's gateway has thousands.

Statuses are received all the time, one message per second and process. Predictions are subscribed to only while the
page is open, and then one per second and session, with only the fields shown (`mien.stream.bus.parts`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from mien.config import BusConfig
from mien.errors import WireError
from mien.messages import Prediction, Status
from mien.stream.bus.parts import decode_part, part_topic
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import decode_status
from mien.stream.dashboard.collector import STALE_S

_SHOWN = ("sentiment_smooth", "top_emotion", "confidence", "abstains")
_RATE_HZ = 1.0
_SILENT_S = 2.5  # processes send a status once a second
_FRESH_S = 3.0  # how long a prediction is shown
_WATCHED_S = 5.0  # after the page's last request
_FORGOTTEN_S = 600.0  # a session silent for this long is removed
_MOST = 100_000
_QUEUED = 20_000  # two seconds' worth of thousands of sessions
_ACTIVE = ("ready", "running", "degraded")


class SessionRow(msgspec.Struct, frozen=True):
    """A session on the overview page.

    Attributes:
        state: as reported by its inference, "degraded" if one of its workers is, or "silent". note: any problem.
        sentiment: smoothed, -3 to 3; None without a current prediction, as for the fields below.
        emotion, confidence: the most probable, and how probable it is.
        per_second: predictions. p50_ms, p99_ms: from frame read to published.
    """

    name: str
    state: str
    sentiment: float | None
    emotion: str | None
    confidence: float | None
    per_second: float
    p50_ms: float | None
    p99_ms: float | None
    note: str


@dataclass
class _State:
    statuses: dict[str, tuple[float, Status]] = field(default_factory=dict)
    prediction: Prediction | None = None
    predicted_s: float = -math.inf
    received_s: float = 0.0


class Sessions:
    """Receives in a thread.

    Args:
        on_several: called with whether there is more than one session, when that changes.

    Attributes:
        count: number of active sessions, as of half a second ago.

    Raises:
        MienError: the address or its keys cannot be used.
    """

    def __init__(self, bus: BusConfig, on_several: Callable[[bool], None] = lambda _: None) -> None:
        self.endpoint = bus.address()
        self._receiver = Receiver(bus.address(), (b"status/",), _QUEUED, bus.keys)
        self._part = part_topic(None, _SHOWN, _RATE_HZ)
        self._states: dict[str, _State] = {}
        self._viewed_s = -math.inf
        self._lock = threading.Lock()
        self._on_several, self.count = on_several, 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    def rows(self) -> list[SessionRow]:
        """All of them, by name. Subscribes to predictions, for as long as it is called regularly."""
        with self._lock:
            self._viewed_s = now_s = time.monotonic()
            return [_row(name, known, now_s) for name, known in sorted(self._states.items())]

    def _run(self) -> None:
        subscribed, counted_s = False, 0.0
        try:
            while not self._stopping.is_set():
                self._receiver.socket.poll(50)
                now_s = time.monotonic()
                with self._lock:
                    for frames in self._receiver.drain(_QUEUED):
                        self._take(frames, now_s)
                    viewed = now_s - self._viewed_s < _WATCHED_S
                    if now_s - counted_s > 0.5:
                        counted_s = now_s
                        self._count_active(now_s)
                if viewed != subscribed:
                    subscribed = viewed
                    (self._receiver.socket.subscribe if viewed else self._receiver.socket.unsubscribe)(self._part)
        finally:
            self._receiver.close()

    def _take(self, frames: list[bytes], now_s: float) -> None:
        try:
            message = decode_status(frames) if frames[0].startswith(b"status/") else decode_part(frames)
        except WireError:
            return
        known = self._states.get(message.session)
        if known is None:
            if len(self._states) >= _MOST:
                return
            known = self._states[message.session] = _State()
        known.received_s = now_s
        if isinstance(message, Status):
            known.statuses[message.worker] = now_s, message
        else:
            known.prediction, known.predicted_s = message, now_s

    def _count_active(self, now_s: float) -> None:
        for name in [name for name, known in self._states.items() if now_s - known.received_s > _FORGOTTEN_S]:
            del self._states[name]
        before, self.count = self.count, sum(_is_active(known, now_s) for known in self._states.values())
        if (before > 1) != (self.count > 1):
            self._on_several(self.count > 1)


def _is_active(known: _State, now_s: float) -> bool:
    at_s, status = known.statuses.get("inference", (-math.inf, None))
    return status is not None and status.state in _ACTIVE and now_s - at_s < _SILENT_S


def _row(name: str, known: _State, now_s: float) -> SessionRow:
    at_s, inference = known.statuses.get("inference", (-math.inf, None))
    if inference is None:
        return SessionRow(name, "silent", None, None, None, 0.0, None, None, "nothing predicts it")
    state, notes = str(inference.state), [inference.last_error or ""]
    is_active = _is_active(known, now_s)
    if is_active:
        others = [status for worker, (_, status) in sorted(known.statuses.items()) if worker != "inference"]
        failing = [status for status in others if status.state in ("degraded", "failed")]
        state = "degraded" if failing else state
        notes += [f"{status.worker}: {status.last_error or status.state}" for status in failing]
    elif inference.state in _ACTIVE:
        state = "silent"
        notes.append(f"silent for {now_s - at_s:.0f} s")
    message = known.prediction if is_active and now_s - known.predicted_s < max(_FRESH_S, STALE_S) else None
    if message is not None and message.abstains:
        notes.append(message.abstains)
    detail = inference.detail
    return SessionRow(
        name,
        state,
        _rounded(message.sentiment_smooth if message is not None else None),
        message.top_emotion if message is not None else None,
        _rounded(message.confidence if message is not None else None),
        round(inference.fps, 1) if is_active else 0.0,
        _rounded(detail.get("latency_p50_ms") if is_active else None),
        _rounded(detail.get("latency_p99_ms") if is_active else None),
        "; ".join(dict.fromkeys(filter(None, notes))),
    )


def _rounded(value: object) -> float | None:
    return round(float(value), 2) if isinstance(value, int | float) else None
