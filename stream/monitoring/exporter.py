"""Prometheus metrics at `/metrics`, and health for supervisors at `/health`. One more subscriber, in a thread.

`/health` answers 200 while predictions come (its JSON lists any problems), and 503 when none do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mien.errors import BusError
from mien.stream.bus.curve import is_loopback
from mien.stream.bus.subscriber import Subscriber
from mien.stream.monitoring.observer import ModalityCondition, Observer, ProcessCondition

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_ACTIVE = ("running", "ready", "ended")

Labels = tuple[str, ...]
Values = Mapping[Any, float]  # by labels, as above; a mapping's keys are invariant, and each family has as many labels
T = TypeVar("T")
# By name: the description, where to read it, and what to divide it by for the unit in the name.
Figures = Mapping[str, tuple[str, Callable[[T], float | None], float]]

_OF_MODALITY: Figures[ModalityCondition] = {
    "age_seconds": ("Age of the newest evidence.", attrgetter("age_ms"), 1e3),
    "masked": ("1 while a modality is missing entirely.", lambda each: each.masked is not None, 1),
}
_OF_PROCESS: Figures[ProcessCondition] = {
    "up": ("1 while a process is healthy.", lambda each: each.state in _ACTIVE, 1),
    "rows_per_second": ("Rows or predictions a second.", attrgetter("fps"), 1),
    "lag_seconds": ("Delay of rows behind capture.", attrgetter("lag_ms"), 1e3),
    "memory_bytes": ("Resident memory.", attrgetter("rss_mb"), 2**-20),
    "cpu_ratio": ("Share of one core.", attrgetter("cpu_percent"), 100),
}
_OF_CLOCK = {"offset": "Clock offset; positive: ahead.", "error": "Error bound of the offset."}


def gauge(name: str, text: str, values: Values, *labels: str) -> Metric:
    """A gauge with a value for each tuple of labels."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def counter(name: str, text: str, values: Values, *labels: str) -> Metric:
    """A counter with a value for each tuple of labels."""
    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def gauges(prefix: str, labels: Labels, items: Collection[tuple[Labels, T]], figures: Figures[T]) -> Iterator[Metric]:
    """A gauge for each figure of some items, without those that are None."""
    for name, (text, read, unit) in figures.items():
        values = {where: value / unit for where, item in items if (value := read(item)) is not None}
        yield gauge(f"{prefix}{name}", text, values, *labels)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


class MetricsServer:
    """Serves /metrics from a registry, and /health, until closed.

    Args:
        registry: of the metrics. health: the answer to /health: status code and JSON.
        port: to listen on; 0 picks a free one, see `port`.

    Raises:
        BusError: the port is in use.
    """

    def __init__(self, registry: CollectorRegistry, health: Callable[[], tuple[int, bytes]], port: int) -> None:
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(registry, health))
        except OSError as error:
            raise BusError(
                f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}; choose another port"
            ) from error
        self.port: int = self._server.server_address[1]
        self._server.daemon_threads = True
        self._serving = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)
        self._serving.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._serving.join(2.0)


class Exporter(MetricsServer):
    """Serves one session's metrics until closed: counters, and gauges that are evaluated on scraping.

    Args:
        endpoint: where inference publishes. session: the one to observe.
        port: as for `MetricsServer`.
        keys: folder of keys, for an endpoint on another machine.

    Raises:
        BusError: as `MetricsServer`.
    """

    def __init__(self, endpoint: str, session: str, port: int, keys: str | Path = "") -> None:
        self._observer, self._session = Observer(Subscriber(endpoint, session=session, keys=keys), session), session
        registry = CollectorRegistry()
        self._predictions = Counter("mien_predictions", "Predictions received.", registry=registry)
        self._abstained = Counter("mien_abstained", "Predictions without evidence.", registry=registry)
        self._latency = Histogram(
            "mien_latency_seconds",
            "From a frame being read to its prediction being published, by stage.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        registry.register(self)
        try:
            super().__init__(registry, self._health, port)
        except BusError:
            self._observer.close()
            raise
        self._stopping = threading.Event()
        self._following = threading.Thread(target=self._follow, name="observer", daemon=True)
        self._following.start()

    def close(self) -> None:
        self._stopping.set()
        super().close()
        self._following.join(2.0)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            for prediction in self._observer.wait(0.2):
                self._predictions.inc()
                if prediction.abstains is not None:
                    self._abstained.inc()
                for stage, ms in prediction.latency.items():
                    self._latency.labels(stage).observe(ms / 1e3)
        self._observer.close()

    def _health(self) -> tuple[int, bytes]:
        condition = self._observer.condition()
        return 503 if condition.verdict == "down" else 200, msgspec.json.encode(condition)

    def collect(self) -> Iterator[Metric]:
        """The current metrics, called by the registry."""
        condition = self._observer.condition()
        is_up = condition.verdict != "down"  # else the last values would pass for current ones
        yield gauge("mien_up", "1 while there are predictions.", {(self._session,): is_up}, "session")
        yield counter("mien_predictions_lost", "Predictions that never arrived here.", {(): condition.lost})
        rate = {(): condition.predictions_per_s}
        yield gauge("mien_predictions_per_second", "Predictions of the last two seconds.", rate)
        modalities = [((each.name,), each) for each in condition.modalities if is_up]
        yield from gauges("mien_", ("modality",), modalities, _OF_MODALITY)
        processes = [((each.worker,), each) for each in condition.processes]
        yield from gauges("mien_process_", ("worker",), processes, _OF_PROCESS)
        restarts = {where: each.restarts for where, each in processes if each.restarts is not None}
        yield counter("mien_process_restarts", "Restarts of a process.", restarts, "worker")
        drops = {(each.worker, cause): count for _, each in processes for cause, count in each.drops.items()}
        yield counter("mien_drops", "What was dropped, by cause.", drops, "worker", "cause")
        inference = self._observer.statuses.get("inference")
        detail = inference.detail if inference is not None and is_up else {}
        for what, text in _OF_CLOCK.items():
            found = {(name.partition(".")[0],): value / 1e3 for name, value in detail.items()
                     if name.endswith(f".clock_{what}_ms") and isinstance(value, float)}  # fmt: skip
            yield gauge(f"mien_clock_{what}_seconds", text, found, "worker")


def _is_ours(host: str | None) -> bool:
    """Whether a Host header names this machine: a web page's own name may resolve to 127.0.0.1 (DNS rebinding)."""
    if host is None:
        return True  # not a browser
    try:
        return is_loopback(urlsplit(f"//{host.lower()}").hostname or "")
    except ValueError:
        return False


def _handler(registry: CollectorRegistry, health: Callable[[], tuple[int, bytes]]) -> type[BaseHTTPRequestHandler]:
    """Answers /metrics from a registry and /health with a code and JSON, to requests for a name of this machine."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0  # for a client that connects and sends nothing

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if not _is_ours(self.headers.get("Host")):
                self._answer(421, "text/plain", b"this server answers only to names of this machine\n")
            elif path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/health":
                code, text = health()
                self._answer(code, "application/json", text)
            else:
                self._answer(404, "text/plain", b"/metrics or /health\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """No log line per scrape."""

    return Handler
