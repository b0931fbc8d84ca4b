"""A fleet's condition, for `mien fleet status`, the metrics and the dashboard."""

from __future__ import annotations

import time
from collections import Counter
from typing import Literal

import msgspec

from mien.stream.fleet.orders import Captured, GatewayReport, PoolReport, Served
from mien.stream.fleet.plan import Problem
from mien.stream.fleet.roster import Held, Member, Node, Roster

State = Literal["waiting", "starting", "running", "degraded", "ended", "failed"]


class SessionCondition(msgspec.Struct, frozen=True):
    """One session.

    Attributes:
        state: "waiting" for a node or a pool, "starting", "running", "degraded" (a captured modality is missing, or
            its capture reports an error), "ended" (its clip), "failed" (its capture does not start).
        node, pool: where it is captured and predicted. run: of its predictions.
        moves: how often it had to be relocated. note: the current or last problem.
        drops: inputs that its current run did not use, by cause, as in a `Status`.
    """

    name: str
    state: State
    node: str = ""
    pool: str = ""
    run: int = 0
    per_second: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    predictions: int = 0
    moves: int = 0
    source: str = ""
    note: str = ""
    drops: dict[str, int] = {}


class PoolCondition(msgspec.Struct, frozen=True):
    """One pool. `cpu_percent` is of one core, `rss_mb` in MiB."""

    name: str
    node: str
    state: str
    sessions: int
    room: int
    cpu_percent: float
    rss_mb: float
    model: str = ""


class NodeCondition(msgspec.Struct, frozen=True):
    """One node."""

    name: str
    id: str
    host: str
    state: Literal["up", "drained", "suspect"]
    captures: int
    pools: int
    cpus: float
    free_cpus: float
    labels: dict[str, str]


class FleetCondition(msgspec.Struct, frozen=True):
    """A fleet.

    Attributes:
        gateway: address for subscribing. since_s: the directory's uptime.
        states: how many sessions are in each. problems: sessions of the plan that cannot run.
        problem: of the whole fleet; empty if there is none.
        gateway_key: its public key, for remote subscribers. forwarded: number of connected pools.
        floods: how often it disconnected all subscribers because of too many subscriptions.
    """

    fleet: str
    gateway: str
    since_s: float
    states: dict[str, int]
    sessions: tuple[SessionCondition, ...]
    pools: tuple[PoolCondition, ...]
    nodes: tuple[NodeCondition, ...]
    problems: tuple[Problem, ...]
    directory_pid: int
    problem: str = ""
    gateway_key: str = ""
    forwarded: int = 0
    floods: int = 0


def condition(roster: Roster, gateway: GatewayReport, began_s: float, pid: int, problem: str = "") -> FleetCondition:
    """The current condition. `began_s`: the directory's start, in Unix time; `problem`: of the whole fleet."""
    sessions = tuple(_session(held, roster) for held in roster.sessions.values())
    pools = tuple(_pool(pool, roster) for pool in roster.of("pool"))
    nodes = tuple(_node(node, roster) for node in roster.nodes.values())
    states = dict(Counter[str](session.state for session in sessions).most_common())
    return FleetCondition(
        roster.plan.fleet,
        gateway.address,
        time.time() - began_s,
        states,
        sessions,
        pools,
        nodes,
        roster.plan.problems,
        pid,
        problem,
        gateway.key,
        gateway.pools,
        gateway.floods,
    )


def _pool(pool: Member, roster: Roster) -> PoolCondition:
    told = pool.report or PoolReport(-1, "", "starting")
    state = "leaving" if pool.leaving else told.state
    where, sessions = _host(roster, pool.node), len(pool.sessions)
    return PoolCondition(pool.name, where, state, sessions, pool.room, told.cpu_percent, told.rss_mb, told.model)


def _node(node: Node, roster: Roster) -> NodeCondition:
    captures = sum(len(member.sessions) for member in roster.of("capture") if member.node == node.id)
    pools = sum(member.node == node.id for member in roster.of("pool"))
    free = round(roster.free_cpus(node), 3)
    return NodeCondition(
        node.labels["host"], node.id, node.host, "drained" if node.drained else "suspect" if node.suspect else "up",
        captures, pools, node.cpus, free, node.labels,
    )  # fmt: skip


def _session(held: Held, roster: Roster) -> SessionCondition:
    captured = held.captured or Captured(0, "starting")
    member, pool = roster.members.get(held.capture), roster.members.get(held.pool)
    served = pool.report.sessions.get(held.planned.name) if pool and pool.report else None
    if served is None or served.run != held.run:
        served = Served(held.run)
    missing = {name: why for name, why in served.absent.items() if name not in captured.absent}
    state: State
    if held.problem and not (held.capture and held.pool):
        state = "waiting"
    elif captured.state == "failed":
        state = "failed"
    elif served.state == "ended":
        state = "ended"
    elif served.error and served.state == "failed":
        state = "failed"
    elif held.gap or not served.predictions:
        state = "starting"
    else:
        state = "degraded" if missing else "running"
    notes = [held.problem, held.gap if state in ("starting", "failed") else "", captured.error]
    notes += [f"{name}: {why}" for name, why in missing.items()]
    notes += [served.error] if served.state == "failed" else []
    return SessionCondition(
        held.planned.name,
        state,
        _host(roster, member.node) if member else "",
        held.pool,
        held.run,
        served.per_second,
        served.p50_ms,
        served.p99_ms,
        held.predictions,
        held.moves,
        captured.label,
        "; ".join(dict.fromkeys(filter(None, notes))),
        served.drops,
    )


def _host(roster: Roster, node: str) -> str:
    found = roster.nodes.get(node)
    return f"{found.labels['host']}/{node[:8]}" if found else node[:8]
