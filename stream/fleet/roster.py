"""A fleet's nodes, members and sessions, and who could take what. Pure: no clock, no Ray, no socket.

The directory keeps the facts on nodes and members (capture hosts and pools); this decides where a session or a new
member goes: to the least loaded candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from mien.stream.fleet.orders import Captured, CaptureReport, PoolReport, Served
from mien.stream.fleet.plan import Plan, Planned

Kind = Literal["capture", "pool"]
NO_ROOM = "no node has"  # prefix of problems that more nodes would solve


@dataclass
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's. host: its address. labels: Ray's, and "host", its name.
        cpus, gpus: its totals. drained: whether to move everything off it. suspect: an actor there does not answer.
    """

    id: str
    host: str
    labels: dict[str, str]
    cpus: float
    gpus: float
    drained: bool = False
    suspect: bool = False

    def fits(self, place: Mapping[str, str]) -> bool:
        """Whether a session with these required labels may run here."""
        return all(self.labels.get(key) == value for key, value in place.items())


@dataclass
class Member:
    """A capture host or a pool, and its known state.

    Attributes:
        node: its id. room: session capacity. cpus, gpus: its reservation.
        sessions: assigned to it. leaving: whether to stop it once it has none.
        idle_since_s, busy_since_s: since when it has had none, or been overloaded.
    """

    name: str
    kind: Kind
    node: str
    room: int
    cpus: float
    gpus: float
    sessions: set[str] = field(default_factory=set)
    leaving: bool = False
    ready: bool = False
    idle_since_s: float | None = None
    busy_since_s: float | None = None
    report: PoolReport | None = None


@dataclass
class Held:
    """A session and its placement.

    Attributes:
        incarnation, run: of its capture and of its predictions; larger ones are newer.
        capture, pool: names of members; empty if there is none.
        left_capture, left_pool: previous members that have not released it yet.
        captured: its capture's report. gap: why it is not predicted; empty if it is.
        problem: why it waits. avoid: a member that it was just moved away from. preferred: the requested node.
        has_listener: whether a pool listens to its capture. moves: how often it had to be relocated.
        predictions: total over all runs.
    """

    planned: Planned
    incarnation: int = 0
    run: int = 0
    capture: str = ""
    pool: str = ""
    left_capture: str = ""
    left_pool: str = ""
    captured: Captured | None = None
    gap: str = "it has not started"
    problem: str = ""
    avoid: str = ""
    preferred: str = ""
    has_listener: bool = False
    moves: int = 0
    predictions: int = 0
    counted: tuple[int, int] = (0, 0)

    def count(self, served: Served) -> None:
        """Update the number of predictions from its run's count."""
        before = self.counted[1] if self.counted[0] == served.run else 0
        self.predictions += max(served.predictions - before, 0)
        self.counted = served.run, served.predictions


class Roster:
    """Nodes, members and sessions."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: dict[str, Node] = {}
        self.members: dict[str, Member] = {}
        self.sessions = {name: Held(planned) for name, planned in plan.sessions.items()}
        self._left: set[str] = set()  # sessions that a member has not released yet

    def of(self, kind: Kind) -> list[Member]:
        return [member for member in self.members.values() if member.kind == kind]

    def usable(self, place: Mapping[str, str]) -> list[Node]:
        """Nodes that accept something new."""
        return [n for n in self.nodes.values() if n.fits(place) and not n.drained and not n.suspect]

    def free_cpus(self, node: Node) -> float:
        """A node's CPUs that no member of this fleet has reserved."""
        return node.cpus - sum(member.cpus for member in self.members.values() if member.node == node.id)

    def free_gpus(self, node: Node) -> float:
        return node.gpus - sum(member.gpus for member in self.members.values() if member.node == node.id)

    def choose_capture(self, held: Held) -> Member | tuple[Node, int] | str:
        """Where to capture a session: a member, or a node for a new one with its capacity; or why nowhere."""
        plan, place = self.plan.capture, held.planned.place
        fitting = [node for node in self.nodes.values() if node.fits(place)]
        if not fitting:
            named = ", ".join(f"{key}={value}" for key, value in sorted(place.items()))
            return f"nothing in the cluster has {named}" if place else "the cluster has no nodes"
        nodes = [node for node in fitting if not node.drained and not node.suspect]
        if not nodes:
            return "every node that it may run on is drained or does not answer"
        best: tuple[tuple[bool, bool, bool, int], Member | tuple[Node, int]] | None = None
        on_node: dict[str, list[Member]] = {}
        for member in self.of("capture"):
            on_node.setdefault(member.node, []).append(member)
        for node in nodes:
            members = on_node.get(node.id, [])
            load = sum(len(member.sessions) for member in members)
            open_ = [m for m in members if len(m.sessions) < m.room and not m.leaving and m.name != held.avoid]
            found: Member | tuple[Node, int] | None = min(open_, key=lambda m: len(m.sessions), default=None)
            if found is None:
                most = int(self.free_cpus(node) / plan.cpus + 1e-9) if plan.cpus else plan.sessions
                if most < 1:
                    continue
                found = node, min(plan.sessions, most)
            # Prefer a running one over one yet to start, for a session that should be predicted again soon.
            starts = bool(held.moves) and isinstance(found, tuple)
            rank = (
                bool(held.preferred) and node.id != held.preferred,
                held.avoid in {m.name for m in members},
                starts,
                load,
            )
            if best is None or rank < best[0]:
                best = rank, found
        if best is None:
            return f"{NO_ROOM} {_cpus(plan.cpus)} free for its capture"
        return best[1]

    def choose_pool(self, held: Held) -> Member | None:
        """The pool to predict a session; None if none has room."""
        dropped = {node.id for node in self.nodes.values() if node.drained or node.suspect}
        pools = [
            pool
            for pool in self.of("pool")
            if len(pool.sessions) < pool.room and not pool.leaving and pool.node not in dropped
            and pool.name != held.avoid
        ]  # fmt: skip
        # Prefer a running one over one that is starting: a relocated session should be predicted at once.
        return min(
            pools,
            key=lambda p: (
                bool(held.preferred) and p.node != held.preferred,
                not p.ready,
                len(p.sessions) / p.room,
            ),
            default=None,
        )

    def why_it_stays(self, held: Held) -> str:
        """Why a session cannot leave its pool; empty if another has room or can be started."""
        if self.choose_pool(replace(held, avoid=held.pool)) is not None:
            return ""
        node = self.choose_pool_node()
        return node if isinstance(node, str) else ""

    def choose_pool_node(self, avoid: str = "") -> Node | str:
        """The node for a new pool; or why there is none."""
        plan = self.plan.pools
        if plan.most and len([pool for pool in self.of("pool") if not pool.leaving]) >= plan.most:
            return f"there are {plan.most} pools, as many as `pools.most` allows"
        nodes = [
            node for node in self.usable({})
            if self.free_cpus(node) >= plan.cpus - 1e-9 and self.free_gpus(node) >= plan.gpus - 1e-9
        ]  # fmt: skip
        if not nodes:
            need = _cpus(plan.cpus) + (f" and {plan.gpus:g} of a GPU" if plan.gpus else "")
            return f"{NO_ROOM} {need} free for a pool"
        pools = Counter(pool.node for pool in self.of("pool"))
        return min(nodes, key=lambda node: (node.id == avoid, pools[node.id], -self.free_cpus(node)))

    def drop(self, member: Member, why: str) -> list[Held]:
        """Remove a lost member. Returns the sessions that are no longer predicted."""
        self.members.pop(member.name, None)
        hit = []
        for name in member.sessions:
            held = self.sessions[name]
            if member.kind == "capture" and held.capture == member.name:
                held.capture, held.captured = "", None
            elif member.kind == "pool" and held.pool == member.name:
                held.pool = ""
            else:
                continue
            held.gap = why
            held.moves += 1
            hit.append(held)
        self.release(member.name)
        for held in self.sessions.values():
            held.avoid = "" if held.avoid == member.name else held.avoid
        return hit

    def release(self, member: str) -> None:
        """The member has released all sessions but its assigned ones."""
        for name in list(self._left):
            held = self.sessions[name]
            held.left_capture = "" if held.left_capture == member else held.left_capture
            held.left_pool = "" if held.left_pool == member else held.left_pool
            if not held.left_capture and not held.left_pool:
                self._left.discard(name)

    def is_left(self, member: Member) -> bool:
        """Whether a member has released all sessions taken from it."""
        left = (self.sessions[name] for name in self._left)
        return all(member.name not in (held.left_capture, held.left_pool) for held in left)

    def leave_pool(self, held: Held, why: str) -> None:
        """Take a session from its pool, which must release it before another gets it."""
        if held.pool:
            self._take(held, held.pool, why)
            held.left_pool, held.pool = held.pool, ""

    def leave_capture(self, held: Held, why: str) -> None:
        """The same for its capture: a camera can be opened only once."""
        if held.capture:
            self._take(held, held.capture, why)
            held.left_capture, held.capture, held.captured = held.capture, "", None

    def _take(self, held: Held, member: str, why: str) -> None:
        self.members[member].sessions.discard(held.planned.name)
        self._left.add(held.planned.name)
        held.avoid, held.gap, held.moves = member, why, held.moves + 1

    def resume_captures(self, member: Member, report: CaptureReport) -> int:
        """Restore a capture host from before the directory's restart. Returns the largest number among its sessions."""
        for name, captured in report.sessions.items():
            held = self.sessions.get(name)
            if held is not None and not held.capture:
                held.capture, held.incarnation = member.name, captured.incarnation
                held.captured = msgspec.structs.replace(captured, orders=())
                member.sessions.add(name)
        return max((captured.incarnation for captured in report.sessions.values()), default=0)

    def resume_pool(self, member: Member, report: PoolReport) -> int:
        """The same for a pool."""
        member.report = report
        for name, served in report.sessions.items():
            held = self.sessions.get(name)
            if held is not None and not held.pool:
                held.pool, held.run, held.gap = member.name, served.run, ""
                held.count(served)
                member.sessions.add(name)
        return max((served.run for served in report.sessions.values()), default=0)


def demand(roster: Roster) -> list[dict[str, float]]:
    """Resources needed by running members and unplaced sessions, one entry per member; empty while none wait."""
    capture, pools = roster.plan.capture, roster.plan.pools
    waiting = [held for held in roster.sessions.values() if held.problem.startswith(NO_ROOM) and " CPU" in held.problem]
    if not waiting:
        return []
    bundles = [{"CPU": m.cpus, "GPU": m.gpus} for m in roster.members.values()]
    uncaptured = sum(1 for held in waiting if not held.capture)
    bundles += [{"CPU": capture.cpus, "GPU": 0.0}] * uncaptured
    bundles += [{"CPU": pools.cpus, "GPU": pools.gpus}] * -(-len(waiting) // pools.sessions)
    return [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles if any(bundle.values())]


def _cpus(count: float) -> str:
    return f"{count:g} CPU" if count == 1 else f"{count:g} CPUs"
