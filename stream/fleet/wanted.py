"""What each actor is to do, from what the roster says: the orders of a directory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from mien.messages import Status
from mien.stream.fleet.link import ActorLink
from mien.stream.fleet.orders import CaptureOrder, CaptureTask, GatewayOrder, PoolOrder, Trusted
from mien.stream.fleet.roster import Held, Member, Roster
from mien.stream.processes.control import Assignment, Order

_PORTS = 10_000


def member_order(
    roster: Roster, member: Member, link: ActorLink, trusted: Mapping[str, Trusted], passed_on: Sequence[Order]
) -> bytes:
    """For a capture host or a pool. `passed_on` are orders of captures for the inference of their sessions."""
    news, trust = link.take_news(), link.new_trust(trusted)
    sessions = [roster.sessions[name] for name in sorted(member.sessions)]
    if member.kind == "capture":
        tasks = tuple(_task(held, roster.plan.capture.port) for held in sessions) if news else None
        return msgspec.json.encode(CaptureOrder(link.version, tasks, trust))
    heard = [_assignment(held) for held in sessions if held.captured and held.captured.endpoints]
    return msgspec.json.encode(PoolOrder(link.version, tuple(heard) if news else None, trust, tuple(passed_on)))


def gateway_order(roster: Roster, link: ActorLink, trusted: Mapping[str, Trusted]) -> bytes:
    """For the gateway: pools that are cut off are those that are no longer named."""
    pools = tuple(m.report.endpoint for m in roster.of("pool") if m.report and m.report.endpoint)
    gaps = {name: _gap(held) for name, held in roster.sessions.items() if held.gap or held.problem}
    said = {name: gap.last_error for name, gap in gaps.items()}
    link.dirty |= link.pools_there != pools
    fresh = link.take_news()
    new_gaps = gaps if fresh or said != link.gaps_there else None
    link.pools_there, link.gaps_there = pools, said
    trust = link.new_trust(trusted, always=fresh)
    return msgspec.json.encode(GatewayOrder(link.version, pools if fresh else None, new_gaps, trust))


def _task(held: Held, first_port: int) -> CaptureTask:
    port = first_port + held.incarnation * 4 % _PORTS
    return CaptureTask(held.planned.config, held.incarnation, port, held.heard)


def _assignment(held: Held) -> Assignment:
    assert held.captured is not None
    config, said = held.planned.config, held.captured
    workers = msgspec.structs.replace(config.bus.workers, **said.endpoints)
    config = msgspec.structs.replace(config, bus=msgspec.structs.replace(config.bus, workers=workers))
    return Assignment(config, 0, said.workers, said.absent, said.origin, said.label, run=held.run)


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
