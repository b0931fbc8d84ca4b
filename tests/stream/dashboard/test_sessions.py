"""All sessions of an address: their states, no cost while no one watches, and the view of a single one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mien.clock import NS_PER_S
from mien.config import BusConfig, DashboardConfig
from mien.errors import BusError
from mien.messages import EMOTIONS, Prediction, Status, WorkerState
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_prediction, encode_status
from mien.stream.dashboard.session_view import SessionViews
from mien.stream.dashboard.sessions import SessionRow, Sessions
from tests.ports import free_ports
from tests.waiting import wait_until


class Station:
    """Publishes what a gateway would."""

    def __init__(self) -> None:
        self.bus = BusConfig(port=free_ports())
        self.publisher = Publisher(self.bus.endpoint(), self.bus)
        self.states: dict[str, WorkerState] = {}
        self.silent: set[str] = set()
        self.parts = 0
        self._seq, self._said_s = 0, 0.0

    def send_prediction(self) -> None:
        """A status of each session, and a prediction, ten times a second."""
        self.publisher.service()
        if time.monotonic() - self._said_s < 0.1:
            return
        self._said_s = time.monotonic()
        self._seq += 1
        for number, (name, state) in enumerate(self.states.items()):
            if name in self.silent:
                continue
            self.send_status(name, state, fps=10.0, detail={"latency_p50_ms": 7.0, "latency_p99_ms": 21.0})
            emotions = {each: 0.4 if each == "happy" else 0.1 for each in EMOTIONS}
            prediction = Prediction(
                session=name, run=1, seq=self._seq, t_end_ns=self._seq * NS_PER_S // 10, sentiment=0.0,
                sentiment_smooth=number - 1.0, emotions=emotions, confidence=0.4,
                gates={"vision": 1.0, "audio": 0.0, "text": 0.0}, age_ms={"vision": 0.0, "audio": None, "text": None},
            )  # fmt: skip
            self.parts += len(self.publisher.parts)
            self.publisher.send_parts(prediction)
            self.publisher.send(encode_prediction(prediction))

    def send_status(self, name: str, state: WorkerState, worker: str = "inference", **more) -> None:  # type: ignore[no-untyped-def]
        status = Status(session=name, worker=worker, run=1, t_ns=time.time_ns(), state=state, pid=1, **more)
        self.publisher.send(encode_status(status))


@pytest.fixture
def station() -> Iterator[Station]:
    opened = Station()
    yield opened
    opened.publisher.close()


def by_name(sessions: Sessions) -> dict[str, SessionRow]:
    return {row.name: row for row in sessions.rows()}


def test_every_session_is_listed_with_its_state(station: Station) -> None:
    several: list[bool] = []
    sessions = Sessions(station.bus, several.append)
    sessions.start()
    try:
        station.states = {"b": "running", "a": "running"}
        wait_until(lambda: sessions.count == 2, "both", meanwhile=station.send_prediction)
        assert several == [True]
        assert station.parts == 0, "predictions are sent without a viewer"
        wait_until(
            lambda: all(row.sentiment is not None for row in sessions.rows()),
            "sentiment",
            meanwhile=station.send_prediction,
        )
        found = by_name(sessions)
        assert list(found) == ["a", "b"]
        assert (found["b"].sentiment, found["a"].sentiment) == (-1.0, 0.0)
        assert found["a"] == SessionRow("a", "running", 0.0, "happy", 0.4, 10.0, 7.0, 21.0, "")
        station.send_status("a", "degraded", "video", last_error="the camera is lost")
        wait_until(lambda: by_name(sessions)["a"].state == "degraded", "trouble", meanwhile=station.send_prediction)
        assert "video: the camera is lost" in by_name(sessions)["a"].note
        station.silent = {"b"}
        wait_until(lambda: by_name(sessions)["b"].state == "silent", "silence", meanwhile=station.send_prediction)
        assert by_name(sessions)["b"].sentiment is None
        station.send_status("b", "failed", last_error="its node is lost")
        wait_until(lambda: by_name(sessions)["b"].state == "failed", "a gap", meanwhile=station.send_prediction)
        assert by_name(sessions)["b"].note == "its node is lost"
        wait_until(lambda: several == [True, False], "one that is left", meanwhile=station.send_prediction)
    finally:
        sessions.stop()


def test_sessions_are_separate_and_each_has_a_view(station: Station, tmp_path: Path) -> None:
    views = SessionViews(DashboardConfig(recordings=str(tmp_path)), station.bus, None, None, trusted=True)
    try:
        first = views.of(None).collector
        station.states = {"a": "running"}
        wait_until(lambda: first.prediction is not None, "the only one", meanwhile=station.send_prediction)
        station.states = {"a": "running", "b": "running"}
        wait_until(lambda: views.count == 2, "both", meanwhile=station.send_prediction)
        wait_until(
            lambda: b"prediction/" not in station.publisher.subscriptions, "rest", meanwhile=station.send_prediction
        )
        other = views.of("b").collector
        wait_until(lambda: other.prediction is not None, "one of them", meanwhile=station.send_prediction)
        assert other.prediction is not None
        assert other.prediction.session == "b"
        assert views.of("b").collector is other
        with pytest.raises(BusError, match="name"):
            views.of("../b")
        station.states = {"a": "running"}
        before = first.prediction
        wait_until(lambda: first.prediction is not before, "the one that is left", meanwhile=station.send_prediction)
    finally:
        views.close()
