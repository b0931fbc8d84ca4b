"""Pools come when sessions are late and go when they are idle; what has no room is asked of an autoscaler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import Marked
from tests.fleet.test_failures import Driver, all_run
from tests.ports import free_ports

pytestmark = [pytest.mark.fleet, pytest.mark.assets, pytest.mark.timeout(400)]
PLAN = """
fleet = "balance"
[capture]
cpus = 0.75
sessions = 1
[pools]
cpus = 0.25
sessions = 4
most = 2
p99_ms = 0.01           # always exceeded
use = 1.0
idle_s = 2
[gateway]
port = {port}
[[sessions]]
pattern = "s-{{n}}"
count = 3
source = "synthetic:5"
"""


def test_pools_and_nodes_follow_demand(marked: Marked, tmp_path: Path) -> None:
    plan = tmp_path / "fleet.toml"
    plan.write_text(PLAN.format(port=free_ports(1)), encoding="utf-8")
    driver = Driver(marked, tmp_path, nodes=2, cpus=1.0)  # for one camera and one pool each
    try:
        driver("start", str(plan))
        found = driver.wait(lambda f: states(f).count("running") == 2 and states(f).count("waiting") == 1)
        waiting = next(session for session in found["sessions"] if session["state"] == "waiting")
        assert "no node has 0.75 CPUs free" in waiting["note"]
        found = driver.wait(lambda f: len(f["pools"]) == 2 and states(f).count("running") == 2 and spread(f))
        moved = [session for session in found["sessions"] if session["moves"]]
        assert [session["moves"] for session in moved] == [1]
        demanded = [{"CPU": 0.25}] * 3 + [{"CPU": 0.75}] * 3
        driver.wait(lambda _: sorted(driver("demanded"), key=str) == demanded)
        driver("add")  # as an autoscaler would
        found = driver.wait(all_run)
        driver.wait(lambda _: driver("demanded") == [])
        # One pool is left by its only session: it is ended, as one is enough.
        pool = next(pool for pool in found["pools"] if pool["sessions"] == 1)
        name = next(session["name"] for session in found["sessions"] if session["pool"] == pool["name"])
        driver("call", "move", name)
        driver.wait(lambda f: [each["name"] for each in f["pools"]] != [each["name"] for each in found["pools"]])
    finally:
        driver.close()
    assert marked.wait_gone(30) == []


def states(found: Any) -> list[str]:
    """Of the sessions."""
    return [session["state"] for session in found["sessions"]]


def spread(found: Any) -> bool:
    """Whether every pool has a session."""
    return all(pool["sessions"] for pool in found["pools"])
