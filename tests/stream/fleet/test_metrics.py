"""Fleet metrics: every name that the Grafana dashboard uses is served."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import msgspec

from mien.stream.fleet.metrics import FleetExporter
from mien.stream.fleet.plan import Problem
from mien.stream.fleet.report import FleetCondition, NodeCondition, PoolCondition, SessionCondition, State
from tests.needs import fetch

ROOT = Path(__file__).parents[3]


def condition(state: State = "running") -> bytes:
    session = msgspec.structs.replace(
        SessionCondition("a", state, "vm/1", "pool-1", 7, 30.0, 12.0, 30.0, 900, 2), drops={"late": 4}
    )
    pool = PoolCondition("pool-1", "vm/1", "ready", 1, 6, 15.0, 130.0)
    node = NodeCondition("vm", "12345678", "10.0.0.1", "up", 1, 1, 8.0, 6.0, {})
    problems = (Problem("b", "no source"),)
    return msgspec.json.encode(
        FleetCondition("f", "tcp://10.0.0.1:5560", 1.0, {state: 1}, (session,), (pool,), (node,), problems, 1, floods=3)
    )


def test_dashboard_queries_exported_metrics() -> None:
    exporter = FleetExporter(condition, 0)
    try:
        code, text = fetch(exporter.port, "/metrics")
    finally:
        exporter.close()
    assert code == 200
    served = set(re.findall(r"^(mien_fleet_\w+)[{ ]", text, re.MULTILINE))
    queried = set(re.findall(r"mien_fleet_\w+", (ROOT / "configs" / "fleet" / "grafana.json").read_text()))
    assert queried
    assert queried <= served
    assert served <= queried, "a figure that the dashboard does not show"
    assert "mien_fleet_gateway_floods_total 3.0" in text
    assert 'mien_fleet_session_drops_total{cause="late",session="a"} 4.0' in text
    assert 'mien_fleet_session_predictions_total{session="a"} 900.0' in text
    assert 'mien_fleet_session_latency_p99_seconds{node="vm/1",pool="pool-1",session="a"} 0.03' in text


def test_health_depends_on_predictions() -> None:
    states: tuple[tuple[State, int], ...] = (("running", 200), ("starting", 503))
    for state, code in states:
        exporter = FleetExporter(partial(condition, state), 0)
        try:
            answer = fetch(exporter.port, "/health")
        finally:
            exporter.close()
        assert answer[0] == code
        assert json.loads(answer[1])["fleet"] == "f"
