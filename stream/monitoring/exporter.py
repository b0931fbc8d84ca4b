"""Prometheus metrics at `/metrics`, and health for supervisors at `/health`. One more subscriber, in a thread.

`/health` answers 200 while predictions come (its JSON lists any problems), and 503 when none do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mien.errors import BusError
from mien.stream.bus.curve import is_loopback
from mien.stream.bus.subscriber import Subscriber
from mien.stream.monitoring.observer import Condition, Observer

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_ACTIVE = ("running", "ready", "ended")


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
        """Stop serving."""
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
        """Stop serving, and disconnect."""
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
        up = GaugeMetricFamily("mien_up", "1 while there are predictions.", labels=["session"])
        up.add_metric([self._session], float(is_up))
        yield up
        lost = CounterMetricFamily("mien_predictions_lost", "Predictions that never arrived here.")
        lost.add_metric([], condition.lost)
        yield lost
        rate = GaugeMetricFamily("mien_predictions_per_second", "Predictions of the last two seconds.")
        rate.add_metric([], condition.predictions_per_s)
        yield rate
        age = GaugeMetricFamily("mien_age_seconds", "Age of the newest evidence.", labels=["modality"])
        masked = GaugeMetricFamily("mien_masked", "1 while a modality is missing entirely.", labels=["modality"])
        for modality in condition.modalities if is_up else ():
            masked.add_metric([modality.name], float(modality.masked is not None))
            if modality.age_ms is not None:
                age.add_metric([modality.name], modality.age_ms / 1e3)
        yield age
        yield masked
        yield from _of_processes(condition)
        inference = self._observer.statuses.get("inference")
        offset = GaugeMetricFamily("mien_clock_offset_seconds", "Clock offset; positive: ahead.", labels=["worker"])
        error = GaugeMetricFamily("mien_clock_error_seconds", "Error bound of the offset.", labels=["worker"])
        for name, value in inference.detail.items() if inference is not None and is_up else ():
            worker, _, what = name.partition(".")
            if what in ("clock_offset_ms", "clock_error_ms") and isinstance(value, float):
                (offset if what == "clock_offset_ms" else error).add_metric([worker], value / 1e3)
        yield offset
        yield error


def _of_processes(condition: Condition) -> Iterator[Metric]:
    label = ["worker"]
    well = GaugeMetricFamily("mien_process_up", "1 while a process is healthy.", labels=label)
    rate = GaugeMetricFamily("mien_process_rows_per_second", "Rows or predictions a second.", labels=label)
    lag = GaugeMetricFamily("mien_process_lag_seconds", "Delay of rows behind capture.", labels=label)
    memory = GaugeMetricFamily("mien_process_memory_bytes", "Resident memory.", labels=label)
    cpu = GaugeMetricFamily("mien_process_cpu_ratio", "Share of one core.", labels=label)
    restarts = CounterMetricFamily("mien_process_restarts", "Restarts of a process.", labels=label)
    drops = CounterMetricFamily("mien_drops", "What was dropped, by cause.", labels=["worker", "cause"])
    for process in condition.processes:
        name = [process.worker]
        well.add_metric(name, float(process.state in _ACTIVE))
        rate.add_metric(name, process.fps)
        if process.lag_ms is not None:
            lag.add_metric(name, process.lag_ms / 1e3)
        if process.rss_mb is not None:
            memory.add_metric(name, process.rss_mb * 2**20)
        if process.cpu_percent is not None:
            cpu.add_metric(name, process.cpu_percent / 100)
        if process.restarts is not None:
            restarts.add_metric(name, process.restarts)
        for cause, count in process.drops.items():
            drops.add_metric([process.worker, cause], count)
    yield from (well, rate, lag, memory, cpu, restarts, drops)


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
