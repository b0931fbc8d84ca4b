"""The directory's connection to one actor: one call at a time, its last known state, and its orders."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from mien.messages import Status
from mien.stream.fleet.cluster import reason
from mien.stream.fleet.orders import FULL, CaptureTask, GatewayOrder, MemberOrder, Trusted
from mien.stream.fleet.roster import Held, Member, Roster
from mien.stream.processes.control import Assignment, Order

_EVERY_S = 0.5
_PORTS = 10_000


class ActorLink:
    """An actor with a method `sync`.

    Attributes:
        handle: Ray's. needs_full: whether the next order must be complete, instead of only the changes.
        version, version_there: of the order, as we count it, and as last reported by the actor.
        answered_s, broken_s: when it last answered; since when its connection is broken, 0 if it is not.
        died: whether Ray says that it is gone for good, and `error`, why. has_answered: whether it ever has.
        pools_there, gaps_there: as last sent to a gateway. pending: Ray's reference to the answer waited for, if any.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.needs_full = True
        self._changed: set[str] = set()
        self.version, self.version_there = 0, -1
        self.answered_s, self.broken_s = time.monotonic(), 0.0
        self.died = self.has_answered = False
        self.error = ""
        self.pools_there: tuple[str, ...] | None = None
        self.gaps_there: dict[str, str] = {}
        self._trusted: dict[str, Trusted] | None = None
        self.pending: Any = None
        self._called_s = 0.0

    @property
    def is_free(self) -> bool:
        """Whether it may be called: the last call is answered, and there is news or a call is due."""
        due = self.needs_full or bool(self._changed) or time.monotonic() - self._called_s >= _EVERY_S
        return self.pending is None and not self.died and due

    @property
    def settled(self) -> bool:
        """Whether the actor has carried out its last order."""
        return not self.needs_full and not self._changed and self.version_there == self.version

    def touch(self, session: str) -> None:
        self._changed.add(session)

    def take_changes(self) -> tuple[int, set[str]] | None:
        """The pending changes, if any; starts a new version then.

        Returns:
            the version before, and the sessions that have changed since; all of them for `WHOLE`.
        """
        if self.settled:
            return None
        since = FULL if self.needs_full or self.version_there != self.version else self.version
        changes = since, self._changed
        self.version += 1
        self.needs_full, self._changed = False, set()
        return changes

    def new_trust(self, trusted: Mapping[str, Trusted], *, always: bool = False) -> dict[str, Trusted] | None:
        """Whom the actor is to trust, if that has changed."""
        if trusted == self._trusted and not always:
            return None
        self._trusted = dict(trusted)
        return self._trusted

    def ask(self, order: bytes) -> None:
        """Send an order; `receive` returns the answer."""
        self._called_s = time.monotonic()
        self.pending = self.handle.sync.remote(order)

    def receive(self, ray: Any, ready: Collection[Any]) -> bytes | None:
        """The answer, if it is among those ready."""
        if self.pending is None or self.pending not in ready:
            return None
        ref, self.pending = self.pending, None
        try:
            answer: bytes = ray.get(ref)
        except ray.exceptions.ActorUnavailableError:
            self.broken_s, self.needs_full = self.broken_s or time.monotonic(), True
            return None
        except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnschedulableError) as error:
            self.died, self.error = True, reason(error)
            return None
        except ray.exceptions.RayError as error:
            self.broken_s, self.needs_full = self.broken_s or time.monotonic(), True
            print(f"an actor failed: {error}", flush=True)
            return None
        self.answered_s, self.broken_s, self.has_answered = time.monotonic(), 0.0, True
        return answer

    def end(self, ray: Any) -> None:
        """Stop the actor gracefully, in the background."""
        threading.Thread(target=self._end, args=(ray,), name="stop actor", daemon=True).start()

    def _end(self, ray: Any) -> None:
        with suppress(Exception):
            ray.get(self.handle.close.remote(), timeout=5.0)
        with suppress(Exception):
            ray.kill(self.handle)


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
    port = roster.plan.capture.port
    tasks = tuple(_task(held, port) if member.kind == "capture" else _assignment(held) for held in sessions)
    order = MemberOrder(link.version, tasks if changes else None, trust, since, gone, tuple(passed_on))
    return msgspec.json.encode(order)


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
