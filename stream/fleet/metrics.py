"""Prometheus metrics of a whole fleet at `/metrics`: by session, node and pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import get_args

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from mien.stream.fleet.report import FleetCondition, NodeCondition, PoolCondition, SessionCondition, State
from mien.stream.monitoring.exporter import Figures, MetricsServer, counter, gauge, gauges

_WELL = ("running", "ended")

_OF_SESSION: Figures[SessionCondition] = {
    "up": ("1 while a session is predicted.", lambda each: each.state in (*_WELL, "degraded"), 1),
    "predictions_per_second": ("Of the last second.", attrgetter("per_second"), 1),
    "latency_p50_seconds": ("Frame read to published.", attrgetter("p50_ms"), 1e3),
    "latency_p99_seconds": ("Frame read to published.", attrgetter("p99_ms"), 1e3),
}
_OF_POOL: Figures[PoolCondition] = {
    "sessions": ("Sessions of a pool.", attrgetter("sessions"), 1),
    "room": ("Sessions that a pool can hold.", attrgetter("room"), 1),
    "cpu_ratio": ("Share of one core.", attrgetter("cpu_percent"), 100),
    "memory_bytes": ("Resident memory.", attrgetter("rss_mb"), 2**-20),
}
_OF_NODE: Figures[NodeCondition] = {
    "cpus": ("CPUs of a node.", attrgetter("cpus"), 1),
    "cpus_free": ("CPUs that no actor was given.", attrgetter("free_cpus"), 1),
    "sessions": ("Sessions captured on a node.", attrgetter("captures"), 1),
    "up": ("1 while a node is used.", lambda each: each.state == "up", 1),
}
_OF_FLEET: Figures[FleetCondition] = {
    "sessions_refused": ("Sessions of the plan that cannot run.", lambda fleet: len(fleet.problems), 1),
    "gateway_up": ("1 while the gateway serves.", lambda fleet: bool(fleet.gateway), 1),
    "gateway_pools": ("Pools that the gateway forwards.", attrgetter("forwarded"), 1),
    "problem": ("1 while the whole fleet has a problem.", lambda fleet: bool(fleet.problem), 1),
    "directory_age_seconds": ("For how long the directory has run.", attrgetter("since_s"), 1),
}


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
        states = {(state,): found.states.get(state, 0) for state in get_args(State)}
        yield gauge("mien_fleet_sessions", "Sessions by state.", states, "state")
        sessions = [((each.name, each.node, each.pool), each) for each in found.sessions]
        yield from gauges("mien_fleet_session_", ("session", "node", "pool"), sessions, _OF_SESSION)
        made = {(each.name,): each.predictions for each in found.sessions}
        yield counter("mien_fleet_session_predictions", "Predictions made.", made, "session")
        moves = {(each.name,): each.moves for each in found.sessions}
        yield counter("mien_fleet_session_moves", "Times it went elsewhere.", moves, "session")
        drops = {(each.name, cause): count for each in found.sessions for cause, count in each.drops.items()}
        yield counter("mien_fleet_session_drops", "Not used or taken in.", drops, "session", "cause")
        pools = [((each.name, each.node), each) for each in found.pools]
        yield from gauges("mien_fleet_pool_", ("pool", "node"), pools, _OF_POOL)
        nodes = [((f"{each.name}/{each.id[:8]}",), each) for each in found.nodes]
        yield from gauges("mien_fleet_node_", ("node",), nodes, _OF_NODE)
        yield from gauges("mien_fleet_", (), [((), found)], _OF_FLEET)
        floods = "All subscribers cut off: one asked for too many topics."
        yield counter("mien_fleet_gateway_floods", floods, {(): found.floods})

    def _health(self) -> tuple[int, bytes]:
        condition = self._look()
        found = msgspec.json.decode(condition, type=FleetCondition)
        alive = found.gateway and (not found.sessions or any(s.state in (*_WELL, "degraded") for s in found.sessions))
        return 200 if alive else 503, condition
