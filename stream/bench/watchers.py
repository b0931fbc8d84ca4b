"""Cost of viewers: one session with no, one and five viewers of its dashboard, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil

from mien.closing import Closing
from mien.config import DashboardConfig
from mien.errors import WorkerError
from mien.messages import Status
from mien.stream.bench.measurement import describe, ratio, rounds
from mien.stream.bench.paced import running
from mien.stream.bus.subscriber import Subscriber
from mien.stream.dashboard.launch import DashboardProcess
from mien.stream.processes.plan import Session
from mien.stream.processes.supervisor import Supervisor

CASES = {"nobody": (0, 0), "one": (1, 0), "five, one of them stalled": (4, 1)}
_SETTLE_S = 4.0  # until previous viewers time out (two seconds), and the status shows it
_READY_S = 60.0


def measure_watchers(session: Session, seconds: float, stopping: threading.Event) -> dict[str, Any]:
    """Latency, rate, and bytes of previews with no, one and five viewers.

    Watchers receive what a browser would but draw nothing: drawing is a cost of the browser's machine. The cases take
    turns in random order, so that other load on the machine affects all of them alike.

    Args:
        session: to run; its dashboard takes any port.
        seconds: of each of the three turns that a case has.

    Raises:
        MienError: a process could not start.
    """
    config = msgspec.structs.replace(session.config, dashboard=DashboardConfig(port=0))
    session = dataclasses.replace(session, config=config)
    latency_ms: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    preview_bytes: dict[str, int] = defaultdict(int)
    answers: dict[str, int] = defaultdict(int)
    memory_mb: list[float] = []
    with ExitStack() as stack:
        live = stack.enter_context(running(session, stopping))
        if live is None:
            return {}
        supervisor, subscriber = live
        supervisor.start()
        dashboard = DashboardProcess(session.config, browser=False)
        stack.callback(dashboard.stop)
        url = _await_page(dashboard, supervisor, subscriber, stopping)
        for case in chain.from_iterable(islice(rounds(CASES), 3)):
            if stopping.is_set():
                break
            with audience(url, *CASES[case]) as counted:
                _listen(supervisor, subscriber, _SETTLE_S, stopping)
                before = _sent_bytes(subscriber.statuses)
                predictions, took_s = _listen(supervisor, subscriber, seconds, stopping)
                now = _sent_bytes(subscriber.statuses)
                memory_mb.append(round(psutil.Process(dashboard.pid).memory_info().rss / 2**20, 1))
                answers[case] += counted["answers"]
            latency_ms[case] += [p.latency["total"] for p in predictions if "total" in p.latency]
            rates[case].append(round(len(predictions) / took_s, 2))
            # A worker that restarted in between counts from 0.
            preview_bytes[case] += now[1] - (before[1] if before[0] == now[0] else 0)
    described = {case: describe(latency_ms[case]) for case in CASES}
    base = "nobody"
    return {
        "latency": described,
        "latency_ratio": {case: ratio(described[base]["blocks"], described[case]["blocks"]) for case in CASES},
        "p99_ratio": {case: round(described[case]["p99"] / described[base]["p99"], 3) for case in CASES},
        "predictions_per_s": dict(rates),
        "rate_ratio": {case: round(sum(rates[case]) / sum(rates[base]), 3) for case in CASES},
        "preview_bytes": dict(preview_bytes),
        "answers": dict(answers),
        "dashboard_memory_mb": memory_mb,
    }


def _await_page(
    dashboard: DashboardProcess, supervisor: Supervisor, subscriber: Subscriber, stopping: threading.Event
) -> str:
    until_s = time.monotonic() + _READY_S
    while dashboard.url is None:
        notes = dashboard.drain_notes()
        if dashboard.failed or time.monotonic() > until_s or stopping.is_set():
            raise WorkerError("; ".join(notes) or "the dashboard is not ready after a minute")
        _listen(supervisor, subscriber, 0.1, stopping)
    return dashboard.url


def _listen(
    supervisor: Supervisor, subscriber: Subscriber, seconds: float, stopping: threading.Event
) -> tuple[list[Any], float]:
    """Predictions arriving within this many seconds, and the actual duration."""
    found = []
    begun_s = time.monotonic()
    while (took_s := time.monotonic() - begun_s) < seconds and not stopping.is_set():
        supervisor.tend()
        found += subscriber.wait(0.05)
    return found, max(took_s, 1e-3)


def _sent_bytes(statuses: dict[str, Status]) -> tuple[int, int]:
    """Run of the video worker, and the bytes of previews sent in it."""
    status = statuses.get("video")
    return (status.run, int(status.detail.get("preview_bytes") or 0)) if status is not None else (0, 0)


class Watcher(Closing):
    """A connection to the feed of the page at a URL, which reads and draws nothing."""

    def __init__(self, url: str) -> None:
        from websockets.sync.client import connect

        parts = urlsplit(url)
        origin: Any = f"{parts.scheme}://{parts.netloc}"
        self._stack = ExitStack()  # the library wants its connections to be entered
        self._socket = self._stack.enter_context(
            connect(f"ws://{parts.netloc}/feed", origin=origin, max_size=None, compression=None)
        )
        self._known = {"era": -1, "row": 0, "sound": 0, "words": -1, "edges": 0, "drawn": 0}

    def ask(self) -> None:
        self._socket.send(msgspec.json.encode(self._known), text=True)

    def take(self, timeout_s: float | None = 10.0) -> dict[str, Any]:
        """Wait for the update; returns its JSON, see `mien.stream.dashboard.feed`."""
        data = self._socket.recv(timeout_s)
        assert isinstance(data, bytes)
        (length,) = struct.unpack_from("<I", data)
        update: dict[str, Any] = msgspec.json.decode(data[4 : 4 + length])
        self._known |= {name: update[name] for name in ("era", "row", "sound", "words")}
        self._known["edges"] |= "edges" in update
        if "picture" in update:
            self._known["drawn"] = update["picture"]["t_us"]
        return update

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def audience(url: str, count: int, stalled: int = 0) -> Iterator[Counter[str]]:
    """Concurrent watchers of a page until the block ends, each in its own thread; counts their "answers".

    Args:
        count: how many read their answers.
        stalled: how many ask and never read.
    """
    counted, stopping = Counter[str](), threading.Event()

    def watch() -> None:
        with Watcher(url) as watcher:
            while not stopping.is_set():
                watcher.ask()
                watcher.take()
                counted["answers"] += 1

    with ExitStack() as stack:
        for _ in range(stalled):
            stack.enter_context(Watcher(url)).ask()
        for _ in range(count):
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
        stack.callback(stopping.set)
        yield counted
