"""The directory's orders for each actor, derived from the roster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from mien.messages import Status
from mien.stream.fleet.link import ActorLink
from mien.stream.fleet.orders import FULL, CaptureOrder, CaptureTask, GatewayOrder, PoolOrder, Trusted
from mien.stream.fleet.roster import Held, Member, Roster
from mien.stream.processes.control import Assignment, Order

_PORTS = 10_000


def member_order(
    roster: Roster, member: Member, link: ActorLink, trusted: Mapping[str, Trusted], passed_on: Sequence[Order]
) -> bytes:
    """For a capture host or a pool. `passed_on`: orders from captures for their sessions' inference."""
    changes, trust = link.take_changes(), link.new_trust(trusted)
    since, names = changes if changes is not None else (link.version, set[str]())
    named = member.sessions if since == FULL else names & member.sessions
    sessions = [roster.sessions[name] for name in sorted(named)]
    if member.kind == "pool":
        sessions = [held for held in sessions if held.captured and held.captured.endpoints]
    gone = tuple(names - {held.planned.name for held in sessions})
    if member.kind == "capture":
        tasks = tuple(_task(held, roster.plan.capture.port) for held in sessions)
        return msgspec.json.encode(CaptureOrder(link.version, tasks if changes else None, trust, since, gone))
    assignments = tuple(map(_assignment, sessions))
    return msgspec.json.encode(
        PoolOrder(link.version, assignments if changes else None, trust, tuple(passed_on), since, gone)
    )


def gateway_order(roster: Roster, link: ActorLink, trusted: Mapping[str, Trusted]) -> bytes:
    """For the gateway: pools that are no longer listed are disconnected."""
    pools = tuple(m.report.endpoint for m in roster.of("pool") if m.report and m.report.endpoint)
    why = {name: held.problem or held.gap for name, held in roster.sessions.items() if held.gap or held.problem}
    link.needs_full |= link.pools_there != pools
    fresh = link.take_changes() is not None
    before = {} if fresh else link.gaps_there
    gaps = {name: _gap(roster.sessions[name]) for name, reason in why.items() if before.get(name) != reason}
    closed = tuple(before.keys() - why.keys())
    link.pools_there, link.gaps_there = pools, why
    trust = link.new_trust(trusted, always=fresh)
    return msgspec.json.encode(GatewayOrder(link.version, pools if fresh else None, gaps, trust, closed))


def _task(held: Held, first_port: int) -> CaptureTask:
    port = first_port + held.incarnation * 4 % _PORTS
    return CaptureTask(held.planned.config, held.incarnation, port, held.has_listener)


def _assignment(held: Held) -> Assignment:
    assert held.captured is not None
    config, captured = held.planned.config, held.captured
    workers = msgspec.structs.replace(config.bus.workers, **captured.endpoints)
    config = msgspec.structs.replace(config, bus=msgspec.structs.replace(config.bus, workers=workers))
    return Assignment(config, 0, captured.workers, captured.absent, captured.origin, captured.label, run=held.run)


def _gap(held: Held) -> Status:
    return Status(
        session=held.planned.name,
        worker="inference",
        run=held.run,
        t_ns=time.time_ns(),
        state="failed" if held.moves else "starting",
        pid=0,
        last_error=held.problem or held.gap,
        detail={"moves": held.moves},
    )
