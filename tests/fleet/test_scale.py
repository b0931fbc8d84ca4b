"""Many sessions on one directory: registered, listed, moved, drained; it answers quickly and memory grows evenly."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import Marked
from tests.fleet.test_failures import Driver
from tests.ports import free_ports

pytestmark = [pytest.mark.fleet, pytest.mark.assets, pytest.mark.timeout(900)]
SESSIONS = int(os.environ.get("MIEN_TEST_SESSIONS", "120"))
TIMEOUT_S = 400.0
PLAN = """
fleet = "many"
[capture]
cpus = 0.0
sessions = 1000
[pools]
cpus = 0.1
sessions = 1000
fewest = 2
most = 2
use = 1.0
p99_ms = 1000000
[health]
silence_s = 30
[gateway]
port = {port}
[defaults.inference]
max_hz = 1
hop_ms = 1000
max_age_ms = 3000
[[sessions]]
pattern = "s-{{n:04}}"
count = {count}
source = "synthetic:1"
"""


def test_many_sessions_are_listed_moved_and_drained(marked: Marked, tmp_path: Path) -> None:
    path, memory = tmp_path / "fleet.toml", dict[int, float]()
    driver = Driver(marked, tmp_path, nodes=2)
    try:
        before = driver("usage")
        for count in (1, SESSIONS // 4, SESSIONS // 2):  # to compare memory with
            start(driver, path, count)
            began_s = time.monotonic()
            driver.wait(lambda f: settled(f) >= 0.98, TIMEOUT_S)
            memory[count] = held_mb(driver)
            print(f"\n{count} sessions: predicted after {time.monotonic() - began_s:.0f} s", flush=True)
            driver("stop")
        began_s = time.monotonic()
        start(driver, path, SESSIONS)
        assert len(timed(driver, "condition")[1]["sessions"]) == SESSIONS
        print(f"{SESSIONS} sessions: known after {time.monotonic() - began_s:.2f} s, with the directory's own start")
        _, slowest_s = answered(driver, lambda f: settled(f) >= 0.98)
        print(f"{SESSIONS} sessions: predicted after {time.monotonic() - began_s:.0f} s; "
              f"status answered in {slowest_s:.2f} s at most", flush=True)  # fmt: skip
        memory[SESSIONS] = held_mb(driver)
        times_s = [timed(driver, "condition")[0] for _ in range(10)]
        moved_s, _ = timed(driver, "call", "move", "s-0001")
        driver.wait(lambda f: by_name(f)["s-0001"]["moves"] == 1 and settled(f) >= 0.98, TIMEOUT_S)
        node, served = busiest(driver("condition"))
        drained_s, _ = timed(driver, "call", "drain", node)
        began_s = time.monotonic()
        _, slowest_s = answered(driver, lambda f: not left_on(f, node) and settled(f) >= 0.98)
        each = {count: (memory[count] - memory[1]) / count for count in list(memory)[1:]}
        print("of directory, gateway, pools and their actors, beyond those of one session: "
              + ", ".join(f"{mb * 1024:.0f} KiB each of {count}" for count, mb in each.items()))  # fmt: skip
        # Linear, but for what a process takes by chance.
        assert memory[SESSIONS] - memory[1] <= 1.5 * SESSIONS * max(each[SESSIONS // 4], 0.0) + 100
        print(f"status answers in {max(times_s):.2f} s at most, move in {moved_s:.2f}, drain in {drained_s:.2f}; "
              f"the node with {served} of the sessions was empty and all predicted after "
              f"{time.monotonic() - began_s:.1f} s, "
              f"status answered in {slowest_s:.2f} s at most")  # fmt: skip
        for kind, (cpu_s, rss, count) in sorted(driver("usage").items()):
            was = before.get(kind, [0, 0, 0])
            print(f"  {kind}: {count:.0f} processes, {rss:.0f} MiB (before {was[1]:.0f}), {cpu_s:.0f} s of CPU")
        moves = max(session["moves"] for session in driver("condition")["sessions"])
        print(f"  no session went elsewhere more than {moves} times; drained, it does twice")
        # Ray keeps the whole plan with the directory, which could not be started again otherwise.
        assert "constructor arguments in the object store" not in (tmp_path / "cluster.log").read_text()
    finally:
        driver.close()
    assert marked.wait_gone(30) == []


def start(driver: Driver, path: Path, count: int) -> None:
    """A fleet of so many sessions."""
    path.write_text(PLAN.format(port=free_ports(1), count=count), encoding="utf-8")
    driver("start", str(path))


def held_mb(driver: Driver) -> float:
    """What the fleet's own processes hold; what makes its rows is none of it."""
    ours = ("Directory", "GatewayActor", "CaptureHost", "PoolHost", "inference")
    usage: dict[str, tuple[float, float, float]] = driver("usage")
    return sum(rss for kind, (_, rss, _) in usage.items() if kind in ours)


def timed(driver: Driver, *call: Any) -> tuple[float, Any]:
    """Seconds, and the answer."""
    began_s = time.monotonic()
    reply = driver(*call)
    return time.monotonic() - began_s, reply


def answered(driver: Driver, condition: Callable[[Any], bool]) -> tuple[Any, float]:
    """The fleet's condition, once it is as wanted, and how long the slowest answer took until then."""
    elapsed_s: list[float] = []

    def look() -> Any:
        elapsed_s.append(0.0)
        elapsed_s[-1], found = timed(driver, "condition")
        return found

    return driver.wait(condition, TIMEOUT_S, look), max(elapsed_s)


def settled(found: Any) -> float:
    """The share of sessions that are predicted; on a machine that is too busy, some are always late."""
    return sum(s["state"] in ("running", "degraded") for s in found["sessions"]) / len(found["sessions"])


def by_name(found: Any) -> dict[str, Any]:
    """Sessions."""
    return {session["name"]: session for session in found["sessions"]}


def busiest(found: Any) -> tuple[str, int]:
    """The node whose pools serve most sessions, and how many."""
    node_of = {pool["name"]: pool["node"] for pool in found["pools"]}
    served = Counter(node_of[session["pool"]] for session in found["sessions"] if session["pool"])
    name, count = served.most_common(1)[0]
    return next(node["id"] for node in found["nodes"] if name.endswith(node["id"][:8])), count


def left_on(found: Any, node: str) -> bool:
    """Whether anything is on a node."""
    entry = next(each for each in found["nodes"] if each["id"] == node)
    return bool(entry["captures"] or entry["pools"])
