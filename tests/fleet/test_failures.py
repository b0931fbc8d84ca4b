"""Three nodes: what is lost is predicted again elsewhere, with newer runs, and the gap is explained."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.fleet.conftest import Marked
from tests.fleet.listening import Listener
from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = [pytest.mark.fleet, pytest.mark.assets, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
LOSSES = int(os.environ.get("MIEN_TEST_LOSSES", "1"))  # of a node
COMPARED_S, ENDING_S = 10.0, 0.3  # latencies of the sessions that were not hit
TIMEOUT_S = 90.0  # however busy the machine; how long it took is printed
PLAN = """
fleet = "drill"
[capture]
cpus = 0.25
sessions = 4
port = {ports}
[pools]
cpus = 0.5
sessions = 6
fewest = 3
use = 1.0
p99_ms = 100000
[gateway]
port = {port}
[defaults.inference]
max_hz = 5
[[sessions]]
pattern = "s-{{n}}"
count = 6
source = "synthetic:5"
"""


class Driver:
    """`tests.fleet.cluster`, as a process."""

    def __init__(self, marked: Marked, folder: Path, nodes: int = 3, cpus: float = 2.0) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        environment = {**marked.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._log = (folder / "cluster.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fleet.cluster", str(nodes), str(cpus)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["ready"]

    def __call__(self, method: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self("end")
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.stdin.close()
            self._process.stdout.close()
            self._log.close()

    def wait(self, condition: Any, timeout_s: float = TIMEOUT_S, look: Callable[[], Any] | None = None) -> Any:
        """The fleet's condition, once it is as wanted."""
        deadline_s = time.monotonic() + timeout_s
        found = None
        while time.monotonic() < deadline_s:
            found = look() if look is not None else self("condition")
            if found is not None and condition(found):
                return found
            time.sleep(0.2)
        raise AssertionError(json.dumps(found, indent=1)[:6000])


def all_run(found: Any) -> bool:
    """Whether every session is predicted."""
    return all(session["state"] == "running" for session in found["sessions"])


def is_whole(found: Any) -> bool:
    """Whether every session is predicted, and all pools that there are to be at least can take more."""
    return all_run(found) and sum(pool["state"] == "ready" for pool in found["pools"]) >= 3


@pytest.fixture
def driver(marked: Marked, tmp_path: Path) -> Iterator[Driver]:
    opened = Driver(marked, tmp_path)
    yield opened
    opened.close()
    assert marked.wait_gone(30) == []


def write_plan(folder: Path) -> tuple[Path, int]:
    """The plan, and the port of its gateway."""
    port = free_ports(1)
    path = folder / "fleet.toml"
    path.write_text(PLAN.format(port=port, ports=free_ports(64)), encoding="utf-8")
    return path, port


def test_sessions_recover_from_every_loss(driver: Driver, tmp_path: Path) -> None:
    plan, port = write_plan(tmp_path)
    assert driver("start", str(plan)) == []  # Ray asks for a token: nothing to warn of
    listeners = [Listener(f"tcp://127.0.0.1:{port}") for _ in range(2)]
    try:
        found = driver.wait(lambda f: all_run(f) and len(f["pools"]) == 3)
        assert len({session["node"] for session in found["sessions"]}) == 3
        # A session runs before its first prediction has come this far.
        names = {session["name"] for session in found["sessions"]}
        wait_until(lambda: all(names <= listener.newest_runs().keys() for listener in listeners), "predictions of each")
        kill_and_wait(driver, listeners, found, "pool's process")
        stop_and_continue(driver, listeners, driver.wait(all_run))
        kill_and_wait(driver, listeners, wait_calm(driver), "pool")
        kill_and_wait(driver, listeners, wait_calm(driver), "capture")
        losses = []
        for left in reversed(range(LOSSES)):
            losses.append(kill_and_wait(driver, listeners, wait_calm(driver), "node"))
            if left:
                driver("add")
        elapsed_s, before_ms, after_ms = zip(*losses, strict=True)
        print(f"{LOSSES} nodes: median {np.median(elapsed_s):.1f} s, p95 {np.percentile(elapsed_s, 95):.1f} s; "
              + compared(list(chain(*before_ms)), list(chain(*after_ms))))  # fmt: skip
        kill_without_gap(driver, listeners, "directory")
        kill_without_gap(driver, listeners, "gateway")
        for listener in listeners:
            assert not any(listener.stale().values()), listener.stale()
            assert "UNEXPLAINED" not in str(listener.gaps()), listener.gaps()
    finally:
        for listener in listeners:
            listener.close()


def wait_calm(driver: Driver) -> Any:
    """The fleet's condition, once all is as it should be; where latencies are to be compared, for a while."""
    if LOSSES > 1:
        driver.wait(is_whole)
        time.sleep(COMPARED_S)
    return driver.wait(is_whole)


class Recovery(NamedTuple):
    """How long it took until all were predicted again, in seconds, and latencies of the others before and after, ms."""

    seconds: float
    before_ms: list[float]
    after_ms: list[float]


def compared(before_ms: list[float], after_ms: list[float]) -> str:
    """What latencies of before and after say."""
    if not before_ms or not after_ms:
        return "no others"
    before, after = np.percentile(before_ms, 99), np.percentile(after_ms, 99)
    return f"p99 of the others {before:.1f} ms before, {after:.1f} ms meanwhile: {after / before:.2f} times"


def kill_and_wait(driver: Driver, listeners: list[Listener], found: Any, what: str) -> Recovery:
    """Kill something that sessions depend on; they are predicted again, under newer runs."""
    before = listeners[0].newest_runs()
    nodes = {node["id"][:8]: node for node in found["nodes"]}
    if what == "node":
        ids = driver("ids")
        number = next(n for n, id_ in enumerate(ids) if n and id_[:8] in nodes)  # the first is Ray's head
        short = ids[number][:8]
        pools = {pool["name"] for pool in found["pools"] if pool["node"].endswith(short)}
        hit = {s["name"] for s in found["sessions"] if s["node"].endswith(short) or s["pool"] in pools}
        killed_s = time.monotonic()
        driver("kill_node", number)
    else:
        kind = what.partition("'")[0]
        names = [name for name in driver("actors") if name.startswith(kind)]
        served = {s["name"]: s["pool"] for s in found["sessions"]}
        if kind == "pool":
            name = next(name for name in names if name in served.values())
            hit = {session for session, pool in served.items() if pool == name}
        else:
            name, hit = names[-1], set()
        killed_s = time.monotonic()
        driver("kill_actor", name, 1 if what != kind else 0)
        if not hit:
            after = driver.wait(lambda f: any(s["moves"] > b["moves"] for s, b in pairs(f, found)))
            hit = {s["name"] for s, b in pairs(after, found) if s["moves"] > b["moves"]}
    assert hit
    elapsed_s = max(listeners[0].wait_new_run(session, before[session], TIMEOUT_S) - killed_s for session in hit)
    rest = set(before) - hit
    before_ms = listeners[0].latencies(rest, killed_s - COMPARED_S, killed_s)
    # Not of the moment in which what was killed ends: a node that is lost takes nothing from the others' processors.
    began_s = killed_s + ENDING_S
    if LOSSES > 1:
        time.sleep(max(began_s + COMPARED_S - time.monotonic(), 0.0))
    after_ms = listeners[0].latencies(rest, began_s, began_s + COMPARED_S)
    print(
        f"{what}: {len(hit)} sessions predicted again after {elapsed_s:.1f} s at most; {compared(before_ms, after_ms)}"
    )
    return Recovery(elapsed_s, before_ms, after_ms)


def stop_and_continue(driver: Driver, listeners: list[Listener], found: Any) -> None:
    """A pool's actor hangs while its process continues: its sessions move, and its messages are fenced off."""
    name = found["sessions"][0]["pool"]
    hit = {session["name"] for session in found["sessions"] if session["pool"] == name}
    before, stopped_s = listeners[0].newest_runs(), time.monotonic()
    driver("kill_actor", name, 0, int(signal.SIGSTOP))
    elapsed_s = max(
        listeners[0].wait_new_run(session, before[session], TIMEOUT_S) - stopped_s for session in sorted(hit)
    )
    orphaned = [p for s in hit for p in listeners[0].sessions[s].predictions if p[1] == before[s] and p[0] > stopped_s]
    assert orphaned, "no orphaned pool published: fencing was not tested"
    print(f"silent pool: {len(orphaned)} predictions came of it before {len(hit)} sessions were predicted elsewhere, "
          f"{elapsed_s:.1f} s after it fell silent, and none after")  # fmt: skip


def pairs(after: Any, before: Any) -> list[tuple[Any, Any]]:
    """Sessions of two conditions."""
    old = {session["name"]: session for session in before["sessions"]}
    return [(session, old[session["name"]]) for session in after["sessions"]]


def kill_without_gap(driver: Driver, listeners: list[Listener], name: str) -> None:
    """Kill what sessions do not depend on: they continue in the same runs."""
    found = driver.wait(all_run)
    before = listeners[0].newest_runs()
    counts = {session: len(received.predictions) for session, received in listeners[0].sessions.items()}
    killed_s = time.monotonic()
    pids = driver("kill_actor", name)
    driver.wait(lambda f: all_run(f) and (name != "directory" or f["directory_pid"] not in pids))
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        now = {session: len(received.predictions) for session, received in listeners[0].sessions.items()}
        if all(now[session] > counts[session] + 10 for session in counts):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"nothing comes after the {name} was killed")
    elapsed_s = max(
        next(p[0] for p in received.predictions[counts[session] :])
        for session, received in listeners[0].sessions.items()
    )
    print(f"{name}: the next predictions came {elapsed_s - killed_s:.1f} s after it was killed")
    assert listeners[0].newest_runs() == before, (found, driver("condition"))
