"""Prometheus metrics of a whole fleet at `/metrics`: by session, node and pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mien.stream.fleet.report import FleetCondition
from mien.stream.monitoring.exporter import MetricsServer

_WELL = ("running", "ended")


class FleetExporter(MetricsServer):
    """Serves a fleet's metrics until closed, on loopback.

    Args:
        look: returns a `FleetCondition` as JSON. port: as for `MetricsServer`.
    """

    def __init__(self, look: Callable[[], bytes], port: int) -> None:
        self._look = look
        registry = CollectorRegistry()
        registry.register(self)
        super().__init__(registry, self._health, port)

    def collect(self) -> Iterator[Metric]:
        """The current metrics, called by the registry."""
        found = msgspec.json.decode(self._look(), type=FleetCondition)
        yield from _of_sessions(found)
        yield from _of_pools(found)
        cpus = GaugeMetricFamily("mien_fleet_node_cpus", "CPUs of a node.", labels=["node"])
        free = GaugeMetricFamily("mien_fleet_node_cpus_free", "CPUs that no actor was given.", labels=["node"])
        captured = GaugeMetricFamily("mien_fleet_node_sessions", "Sessions captured on a node.", labels=["node"])
        up = GaugeMetricFamily("mien_fleet_node_up", "1 while a node is used.", labels=["node"])
        for node in found.nodes:
            name = [f"{node.name}/{node.id[:8]}"]
            cpus.add_metric(name, node.cpus)
            free.add_metric(name, node.free_cpus)
            captured.add_metric(name, node.captures)
            up.add_metric(name, float(node.state == "up"))
        yield from (cpus, free, captured, up)
        yield from _of_gateway(found)

    def _health(self) -> tuple[int, bytes]:
        condition = self._look()
        found = msgspec.json.decode(condition, type=FleetCondition)
        alive = found.gateway and (not found.sessions or any(s.state in (*_WELL, "degraded") for s in found.sessions))
        return 200 if alive else 503, condition


def _of_sessions(found: FleetCondition) -> Iterator[Metric]:
    states = GaugeMetricFamily("mien_fleet_sessions", "Sessions by state.", labels=["state"])
    for state in ("waiting", "starting", "running", "degraded", "ended", "failed"):
        states.add_metric([state], found.states.get(state, 0))
    labels = ["session", "node", "pool"]
    up = GaugeMetricFamily("mien_fleet_session_up", "1 while a session is predicted.", labels=labels)
    rate = GaugeMetricFamily("mien_fleet_session_predictions_per_second", "Of the last second.", labels=labels)
    p50 = GaugeMetricFamily("mien_fleet_session_latency_p50_seconds", "Frame read to published.", labels=labels)
    p99 = GaugeMetricFamily("mien_fleet_session_latency_p99_seconds", "Frame read to published.", labels=labels)
    made = CounterMetricFamily("mien_fleet_session_predictions", "Predictions made.", labels=["session"])
    moves = CounterMetricFamily("mien_fleet_session_moves", "Times it went elsewhere.", labels=["session"])
    drops = CounterMetricFamily("mien_fleet_session_drops", "Not used or taken in.", labels=["session", "cause"])
    for session in found.sessions:
        where = [session.name, session.node, session.pool]
        up.add_metric(where, float(session.state in (*_WELL, "degraded")))
        rate.add_metric(where, session.per_second)
        if session.p50_ms is not None and session.p99_ms is not None:
            p50.add_metric(where, session.p50_ms / 1e3)
            p99.add_metric(where, session.p99_ms / 1e3)
        made.add_metric([session.name], session.predictions)
        moves.add_metric([session.name], session.moves)
        for cause, count in session.drops.items():
            drops.add_metric([session.name, cause], count)
    refused = GaugeMetricFamily("mien_fleet_sessions_refused", "Sessions of the plan that cannot run.")
    refused.add_metric([], len(found.problems))
    yield from (states, refused, up, rate, p50, p99, made, moves, drops)


def _of_pools(found: FleetCondition) -> Iterator[Metric]:
    labels = ["pool", "node"]
    sessions = GaugeMetricFamily("mien_fleet_pool_sessions", "Sessions of a pool.", labels=labels)
    room = GaugeMetricFamily("mien_fleet_pool_room", "Sessions that a pool can hold.", labels=labels)
    cpu = GaugeMetricFamily("mien_fleet_pool_cpu_ratio", "Share of one core.", labels=labels)
    memory = GaugeMetricFamily("mien_fleet_pool_memory_bytes", "Resident memory.", labels=labels)
    for pool in found.pools:
        where = [pool.name, pool.node]
        sessions.add_metric(where, pool.sessions)
        room.add_metric(where, pool.room)
        cpu.add_metric(where, pool.cpu_percent / 100)
        memory.add_metric(where, pool.rss_mb * 2**20)
    yield from (sessions, room, cpu, memory)


def _of_gateway(found: FleetCondition) -> Iterator[Metric]:
    up = GaugeMetricFamily("mien_fleet_gateway_up", "1 while the gateway serves.")
    up.add_metric([], float(bool(found.gateway)))
    forwarded = GaugeMetricFamily("mien_fleet_gateway_pools", "Pools that the gateway forwards.")
    forwarded.add_metric([], found.forwarded)
    floods = CounterMetricFamily("mien_fleet_gateway_floods", "All subscribers cut off: one asked for too many topics.")
    floods.add_metric([], found.floods)
    problem = GaugeMetricFamily("mien_fleet_problem", "1 while the whole fleet has a problem.")
    problem.add_metric([], float(bool(found.problem)))
    age = GaugeMetricFamily("mien_fleet_directory_age_seconds", "For how long the directory has run.")
    age.add_metric([], found.since_s)
    yield from (up, forwarded, floods, problem, age)
