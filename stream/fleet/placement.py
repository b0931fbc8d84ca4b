"""The directory's decisions: who captures and predicts which session, and which members to start and stop."""

from __future__ import annotations

import time
from typing import Any

from mien.stream.fleet.actors import Actors
from mien.stream.fleet.link import ActorLink
from mien.stream.fleet.orders import GatewayReport
from mien.stream.fleet.plan import Plan
from mien.stream.fleet.roster import Held, Kind, Member, Node, Roster, demand

_BUSY_S = 10.0
_DEMAND_S = 5.0
_PLACING_S = 0.1  # per cycle
_RECOVERY_S = 15.0  # after a loss


class Placement:
    """Places sessions with members, and members on nodes. Arguments as for `Actors`."""

    def __init__(self, ray: Any, plan: Plan, guarded: bool) -> None:
        self._ray, self._plan = ray, plan
        self._roster, self._actors = Roster(plan), Actors(ray, plan, guarded)
        self._links: dict[str, ActorLink] = {}
        self._gateway: ActorLink | None = None
        self._gateway_report = GatewayReport(-1, "")  # the gateway's last report
        self._number, self._last_number = 0, int(time.time() * 1000)
        self._first = 0  # index of the session to consider first in the next cycle
        self._lost_s = 0.0  # when a member was
        self._demanded: Any = None
        self._demanded_s = 0.0

    def _decide(self) -> None:
        roster, now_s = self._roster, time.monotonic()
        if self._gateway is None:
            self._gateway = ActorLink(self._actors.gateway(list(roster.nodes.values())))
        for node in roster.nodes.values():
            if node.drained:
                self._drain(node)
        self._add_spares(now_s)
        self._place()
        for member in list(roster.members.values()):
            if member.kind == "pool":
                self._rebalance(member, now_s)
            else:
                member.leaving = not member.sessions
                if member.leaving and self._roster.is_left(member):
                    self._end(member)
        self._demand(now_s)

    def _add_spares(self, now_s: float) -> None:
        """Keep the minimum number of pools; after a loss, only once its sessions are predicted again elsewhere.

        Starting a pool takes seconds of CPU time, which those sessions need first.
        """
        active = [pool for pool in self._roster.of("pool") if not pool.leaving]
        recovers = any(held.gap and held.moves and not held.problem for held in self._roster.sessions.values())
        if recovers and any(pool.ready for pool in active) and now_s - self._lost_s < _RECOVERY_S:
            return
        lost = self._lost_s > 0
        for _ in range(len(active), self._plan.pools.fewest):
            if self._add_pool(spare=lost) is None:
                return

    def _demand(self, now_s: float) -> None:
        """The fleet's total resource demand, for an autoscaler; sent again when it changes."""
        if now_s - self._demanded_s < _DEMAND_S:
            return
        self._demanded_s = now_s
        bundles = demand(self._roster)
        if bundles != self._demanded and (bundles or self._demanded):
            from ray.autoscaler.sdk import request_resources

            self._demanded = bundles
            request_resources(bundles=bundles)

    def _place(self) -> None:
        """Place unplaced sessions; a limited number per cycle, to keep it short."""
        deadline_s, sessions = time.monotonic() + _PLACING_S, list(self._roster.sessions.values())
        for held in sessions[self._first :] + sessions[: self._first]:
            if not held.capture and not held.left_capture:
                self._place_capture(held)
            if held.capture and not held.pool and not held.left_pool:
                self._place_pool(held)
            self._first = (self._first + 1) % len(sessions)
            if time.monotonic() > deadline_s:
                return

    def _place_capture(self, held: Held) -> None:
        if self._plan.recording.folder and not self._gateway_report.address:
            return  # a recorder subscribes there
        choice = self._roster.choose_capture(held)
        if isinstance(choice, str):
            held.problem = choice
            return
        if isinstance(choice, tuple):
            node, room = choice
            choice = self._add("capture", node, room)
        held.problem, held.capture = "", choice.name
        held.incarnation, held.has_listener = self._next_number(), False
        choice.sessions.add(held.planned.name)
        choice.leaving = False
        self._links[choice.name].touch(held.planned.name)

    def _place_pool(self, held: Held) -> None:
        if held.captured is None or not held.captured.endpoints:
            return
        if held.moves and self._gateway is not None and not self._gateway.settled:
            return  # first disconnect the previous pool, which may still be sending
        pool = self._roster.choose_pool(held)
        if pool is None:
            pool = self._add_pool()
            if pool is None and held.avoid:
                held.avoid = ""  # better the old one than none
                pool = self._roster.choose_pool(held)
        if pool is None:
            why = self._roster.choose_pool_node()
            held.problem = why if isinstance(why, str) else "no pool has room"
            return
        held.problem, held.pool, held.run = "", pool.name, self._next_number()
        pool.sessions.add(held.planned.name)
        self._links[pool.name].touch(held.planned.name)

    def _rebalance(self, pool: Member, now_s: float) -> None:
        """Relieve an overloaded pool, and stop an idle one."""
        plan, report = self._plan.pools, pool.report
        pool.idle_since_s = None if pool.sessions else pool.idle_since_s or now_s
        spare = len([p for p in self._roster.of("pool") if not p.leaving]) > plan.fewest
        if pool.leaving or (pool.idle_since_s and spare and now_s - pool.idle_since_s > plan.idle_s):
            pool.leaving = True
            if not pool.sessions and self._roster.is_left(pool):
                self._end(pool)
            return
        if report is None or len(pool.sessions) < 2:
            pool.busy_since_s = None
            return
        worst = max((s.p99_ms or 0.0 for s in report.sessions.values()), default=0.0)
        if report.cpu_percent <= plan.use * 100 and worst <= plan.p99_ms:
            pool.busy_since_s = None
            return
        pool.busy_since_s = pool.busy_since_s or now_s
        if now_s - pool.busy_since_s < _BUSY_S:
            return
        pool.busy_since_s = now_s
        others = [p for p in self._roster.of("pool") if p is not pool and not p.leaving and p.busy_since_s is None]
        roomy = [p for p in others if len(p.sessions) < min(p.room, len(pool.sessions) - 1)]
        if roomy or self._add_pool(pool.node) is not None:
            held = self._roster.sessions[min(pool.sessions)]
            self._roster.leave_pool(held, "its pool had too much to do")
            self._mark_changed(held)

    def _drain(self, node: Node) -> None:
        """Move sessions off a drained node, once a member elsewhere is ready for them."""
        why = f"the node {node.labels['host']} is drained"
        for member in [m for m in self._roster.members.values() if m.node == node.id]:
            member.leaving = True
            for name in list(member.sessions):
                held = self._roster.sessions[name]
                if member.kind == "pool":
                    other = self._roster.choose_pool(held)
                    if other is None:
                        self._add_pool(node.id)
                        break
                    if not other.ready:
                        break
                    self._roster.leave_pool(held, why)
                elif any(each.fits(held.planned.place) for each in self._roster.usable({})):
                    self._roster.leave_capture(held, why)
                self._mark_changed(held)
            if not member.sessions and self._roster.is_left(member):
                self._end(member)

    def _end(self, member: Member) -> None:
        link = self._links.pop(member.name)
        self._roster.drop(member, "")
        link.end(self._ray)
        if self._gateway is not None:
            self._gateway.needs_full = True

    def _mark_changed(self, held: Held) -> None:
        for name in (held.capture, held.pool, held.left_capture, held.left_pool):
            if name in self._links:
                self._links[name].touch(held.planned.name)

    def _next_number(self) -> int:
        """A number larger than all before, even a previous directory's."""
        self._last_number = max(self._last_number + 1, int(time.time() * 1000))
        return self._last_number

    def _add_pool(self, avoid: str = "", *, spare: bool = False) -> Member | None:
        node = self._roster.choose_pool_node(avoid)
        return None if isinstance(node, str) else self._add("pool", node, self._plan.pools.sessions, spare)

    def _add(self, kind: Kind, node: Node, room: int, spare: bool = False) -> Member:
        self._number += 1
        name, gateway = f"{kind}-{self._number}", self._gateway_report.address
        return self._enter(*self._actors.member(kind, name, node, room, gateway, spare))

    def _enter(self, member: Member, handle: Any) -> Member:
        self._roster.members[member.name] = member
        self._links[member.name] = ActorLink(handle)
        return member
