"""The directory: assigns sessions to members and tracks them. One named, detached actor, restarted when it dies.

It stores nothing on disk. It is created with the plan, and asks running actors for their state. Ray is told where to
place each actor, and reports when one dies; an unresponsive actor is given up here, sooner than Ray would.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
import zlib
from contextlib import suppress
from typing import Any

import msgspec

from mien.errors import FleetError
from mien.stream.fleet import report as reports
from mien.stream.fleet.cluster import DIRECTORY, ON_HEAD, namespace, quiet_ray
from mien.stream.fleet.link import ActorLink, gateway_order, member_order
from mien.stream.fleet.orders import CaptureReport, GatewayReport, PoolReport, Trusted
from mien.stream.fleet.placement import Placement
from mien.stream.fleet.plan import Plan
from mien.stream.fleet.roster import Member, Node
from mien.stream.processes.control import Order

_CYCLE_S = 0.2
_NODES_S = 1.0
_UNAVAILABLE_S = 1.2  # grace period for an actor with a broken connection
_START_TIMEOUT_S = 60.0  # an actor that Ray has not placed by then is placed elsewhere
_SUSPECT_S = 15.0  # a node with unresponsive actors gets nothing new for this long
_CHUNK_BYTES = 64 << 10  # bytes; Ray's limit is 100 KiB
_REPORT_FACTOR = 20.0  # minimum interval between reports as a multiple of their cost: at most a twentieth of the time
_RETRY_S = 3.0  # before retrying a gateway that failed to start


class Directory(Placement):
    """Keeps a fleet in the state that its plan describes.

    Args:
        guarded: whether actors serve other machines, and so need keys. plan: from `in_pieces`.
    """

    def __init__(self, guarded: bool, *plan: bytes) -> None:
        packed = zlib.decompress(b"".join(plan))
        super().__init__(quiet_ray(), msgspec.msgpack.decode(packed, type=Plan), guarded)
        self._guarded = guarded
        self._problem = ""
        self._keys: dict[str, Trusted] = {}
        self._orders: dict[str, list[Order]] = {}
        self._suspect_until_s: dict[str, float] = {}
        self._looked_s = 0.0
        self._lock = threading.Lock()
        self._report_json, self._report_s = b"", 0.0  # a report, and when the next one is due
        self._stopping = threading.Event()
        self._began_s = time.time()
        self._adopt()
        self._report()
        self._thread = threading.Thread(target=self._run, name="directory", daemon=True)
        self._thread.start()
        self._exporter: Any = None
        if self._plan.gateway.metrics_port:
            from mien.stream.fleet.metrics import FleetExporter

            self._exporter = FleetExporter(self.condition, self._plan.gateway.metrics_port)

    # --- requests ----------------------------------------------------------------------------------------------------

    def condition(self) -> bytes:
        """A `report.FleetCondition` as JSON, as of the last cycle, so that callers never wait for a cycle to end."""
        return self._report_json

    def move(self, session: str, to: str = "", capture: bool = False) -> str:
        """Predict a session elsewhere; with `capture`, capture it elsewhere too. `to` is a node's name or id.

        Raises:
            FleetError: there is no such session or node, or it may not run there.
        """
        with self._lock:
            held = self._roster.sessions.get(session)
            if held is None:
                raise FleetError(f"no session is called {session}")
            node = self._node(to) if to else None
            if node is not None and capture and not node.fits(held.planned.place):
                raise FleetError(f"{session} may not run on {to}: its place is {held.planned.place}")
            if not held.pool and not held.capture:
                raise FleetError(f"{session} does not run: {held.problem or held.gap}")
            if held.pool and (why := self._roster.why_it_stays(held)):
                raise FleetError(f"{session} stays where it is: {why}")
            held.preferred = node.id if node is not None else ""
            self._roster.leave_pool(held, "it is moved to another pool")
            if capture:
                self._roster.leave_capture(held, "its capture is moved to another node")
            self._mark_changed(held)
        self._report(at_once=True)
        return f"{session} is moved"

    def drain(self, node: str, back: bool = False) -> str:
        """Move everything off a node, and place nothing new there; `back` makes it available again.

        Raises:
            FleetError: there is no such node.
        """
        with self._lock:
            found = self._node(node)
            found.drained = not back
        self._report(at_once=True)
        return f"{node} is {'used again' if back else 'drained'}"

    def stop(self) -> int:
        """Stop all other actors. Returns how many there were."""
        self._stopping.set()
        self._thread.join(10.0)
        with self._lock:
            links = [*self._links.values(), *([self._gateway] if self._gateway else [])]
            refs = [link.handle.close.remote() for link in links]
            with suppress(Exception):
                self._ray.wait(refs, num_returns=len(refs), timeout=8.0)
            for link in links:
                with suppress(Exception):
                    self._ray.kill(link.handle)
        if self._exporter is not None:
            self._exporter.close()
        return len(links)

    def processes(self) -> list[int]:
        return [os.getpid()]

    # --- maintenance --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            began_s = time.monotonic()
            for step in (self._refresh_nodes, self._cycle, self._report):
                try:
                    step()
                except Exception as error:  # the fleet continues; its status shows the error
                    self._problem = f"the directory: {type(error).__name__}: {error}"
                    traceback.print_exc()
            self._stopping.wait(max(_CYCLE_S - (time.monotonic() - began_s), 0.02))

    def _refresh_nodes(self) -> None:
        if time.monotonic() - self._looked_s >= _NODES_S:
            nodes = self._ray.nodes()
            with self._lock:
                self._looked_s = time.monotonic()
                self._update_nodes(nodes)

    def _cycle(self) -> None:
        with self._lock:
            self._poll_actors()
            self._decide()
            self._send_orders()

    def _report(self, *, at_once: bool = False) -> None:
        began_s = time.monotonic()
        if at_once or began_s >= self._report_s:
            with self._lock:
                report = reports.condition(
                    self._roster, self._gateway_report, self._began_s, os.getpid(), self._problem
                )
            self._report_json = msgspec.json.encode(report)
            self._report_s = time.monotonic() + _REPORT_FACTOR * (time.monotonic() - began_s)

    def _update_nodes(self, nodes: list[dict[str, Any]]) -> None:
        """Update the nodes; everything on nodes that are gone is lost."""
        known, now_s = self._roster.nodes, time.monotonic()
        alive = {node["NodeID"]: node for node in nodes if node["Alive"]}
        for id_ in known.keys() - alive.keys():
            gone = known.pop(id_)
            for member in [m for m in self._roster.members.values() if m.node == id_]:
                self._give_up(member, f"the node {gone.labels['host']} is lost")
        for id_, seen in alive.items():
            resources = seen["Resources"]
            labels = {**seen.get("Labels", {}), "host": seen["NodeManagerHostname"]}
            before = known.get(id_)
            known[id_] = Node(
                id_, seen["NodeManagerAddress"], labels, resources.get("CPU", 0.0), resources.get("GPU", 0.0),
                drained=before is not None and before.drained,
                suspect=self._suspect_until_s.get(id_, 0.0) > now_s,
            )  # fmt: skip

    def _poll_actors(self) -> None:
        now_s = time.monotonic()
        links = [*self._links.values(), *([self._gateway] if self._gateway else [])]
        pending = [link.pending for link in links if link.pending is not None]
        ready = set(self._ray.wait(pending, num_returns=len(pending), timeout=0)[0]) if pending else set()
        for name, link in list(self._links.items()):
            member = self._roster.members[name]
            answer = link.receive(self._ray, ready)
            if answer is not None:
                self._suspect_until_s.pop(member.node, None)
                self._process_answer(member, link, answer)
            elif link.died:
                self._give_up(member, f"the {member.kind} {name} died")
            elif link.broken_s and now_s - link.broken_s > _UNAVAILABLE_S:
                self._give_up_node(member, f"the {member.kind} {name} is lost")
            elif now_s - link.answered_s > (self._plan.health.silence_s if link.has_answered else _START_TIMEOUT_S):
                self._give_up_node(member, f"the {member.kind} {name} does not answer")
        if self._gateway is not None:
            answer = self._gateway.receive(self._ray, ready)
            if answer is not None:
                report = msgspec.json.decode(answer, type=GatewayReport)
                self._gateway_report = report
                self._gateway.version_there = report.version
                self._gateway.needs_full |= report.pools < len(self._gateway.pools_there or ())
                self._problem = ""
            elif self._gateway.died and now_s - self._gateway.answered_s > _RETRY_S:
                self._problem, self._gateway_report = f"the gateway: {self._gateway.error}", GatewayReport(-1, "")
                self._gateway = None

    def _process_answer(self, member: Member, link: ActorLink, answer: bytes) -> None:
        if member.kind == "capture":
            report = msgspec.json.decode(answer, type=CaptureReport)
            key, link.version_there, member.ready = report.key, report.version, True
            for name, captured in report.sessions.items():
                held = self._roster.sessions.get(name)
                if held is None or held.capture != member.name or held.incarnation != captured.incarnation:
                    continue
                if captured.orders and held.pool:
                    self._orders.setdefault(held.pool, []).extend(captured.orders)
                before, held.captured = held.captured, msgspec.structs.replace(captured, orders=())
                if before is None or (before.endpoints, before.workers) != (captured.endpoints, captured.workers):
                    held.run = self._next_number()
                    self._mark_changed(held)
                if captured.state == "failed" or not captured.endpoints:
                    held.gap = held.gap if not captured.error else captured.error
        else:
            pool = msgspec.json.decode(answer, type=PoolReport)
            key, link.version_there, member.report = pool.key, pool.version, pool
            member.ready = pool.state == "ready"
            for name, served in pool.sessions.items():
                held = self._roster.sessions.get(name)
                if held is None or held.pool != member.name or held.run != served.run:
                    continue
                held.count(served)
                if not held.has_listener and served.state in ("ready", "running"):
                    held.has_listener = True
                    if held.capture in self._links:
                        self._links[held.capture].touch(name)
                if served.predictions:
                    held.gap, held.avoid, held.preferred = "", "", ""
            if pool.state == "dead":
                self._give_up(member, pool.error or f"the pool {member.name} died")
                return
        if link.settled:
            self._roster.release(member.name)
        self._trust(member, key)

    def _trust(self, member: Member, key: str) -> None:
        """Make the key of a member's machine known to the others."""
        node = self._roster.nodes.get(member.node)
        if self._guarded and node is not None and key:
            self._keys[f"node-{node.host.replace(':', '_')}"] = Trusted(key, node.host)

    def _give_up(self, member: Member, why: str) -> None:
        """Give up an unresponsive or dead member: cut off anything it may still send, and move its sessions."""
        self._lost_s = time.monotonic()
        for held in self._roster.drop(member, why):
            held.run = self._next_number()
            if member.kind == "capture":
                self._mark_changed(held)
        link = self._links.pop(member.name, None)
        self._orders.pop(member.name, None)
        if link is not None:
            with suppress(Exception):
                self._ray.kill(link.handle)
        if self._gateway is not None and member.kind == "pool":
            self._gateway.needs_full = True
            self._send_gateway_order()

    def _give_up_node(self, member: Member, why: str) -> None:
        """The same if the whole node may be gone: its other members may still answer, but it gets nothing new."""
        self._suspect_until_s[member.node] = time.monotonic() + _SUSPECT_S
        node = self._roster.nodes.get(member.node)
        if node is not None:
            node.suspect = True
        self._give_up(member, why)

    # --- orders ------------------------------------------------------------------------------------------------------

    def _send_orders(self) -> None:
        for name, link in self._links.items():
            if link.is_free:
                report = self._orders.pop(name, ())
                link.ask(member_order(self._roster, self._roster.members[name], link, self._keys, report))
        self._send_gateway_order()

    def _send_gateway_order(self) -> None:
        if self._gateway is not None and self._gateway.is_free:
            allowed = {name: Trusted(key) for name, key in self._plan.gateway.allow.items()}
            self._gateway.ask(gateway_order(self._roster, self._gateway, {**self._keys, **allowed}))

    # --- members -----------------------------------------------------------------------------------------------------

    def _node(self, name: str) -> Node:
        nodes = list(self._roster.nodes.values())
        found = [
            node for node in nodes
            if name in (node.id, node.labels["host"], node.host) or (len(name) >= 8 and node.id.startswith(name))
        ]  # fmt: skip
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{node.labels['host']} ({node.id[:8]})" for node in found or nodes)
        if found:
            raise FleetError(f"{len(found)} nodes are called {name}; give the id of one: {known}")
        raise FleetError(f"no node is called {name}; there are: {known}")

    def _adopt(self) -> None:
        """Take over the members that a previous directory left running."""
        self._update_nodes(self._ray.nodes())
        for member, handle, answer in self._actors.found():
            self._enter(member, handle)
            link = self._links[member.name]
            member.ready = link.has_answered = True
            self._number = max(self._number, int(member.name.rpartition("-")[2]))
            if member.kind == "capture":
                captures = msgspec.json.decode(answer, type=CaptureReport)
                version, key = captures.version, captures.key
                issued = self._roster.resume_captures(member, captures)
            else:
                pool = msgspec.json.decode(answer, type=PoolReport)
                version, key = pool.version, pool.key
                issued = self._roster.resume_pool(member, pool)
            link.version = link.version_there = version
            self._last_number = max(self._last_number, issued)
            # Before any trust is sent: an actor that is left out would be disconnected.
            self._trust(member, key)
        for held in self._roster.sessions.values() if self._links else ():
            if not held.pool:
                held.gap, held.moves = "it was lost together with the directory", 1


def in_pieces(plan: bytes) -> list[bytes]:
    """A plan, compressed, in chunks small enough for Ray to store with the actor.

    Larger arguments are stored on the machine that starts the fleet, where a restarted directory may not find them.
    """
    packed = zlib.compress(plan)
    return [packed[begin : begin + _CHUNK_BYTES] for begin in range(0, len(packed), _CHUNK_BYTES)]


def open_directory(ray: Any, fleet: str, plan: bytes, guarded: bool) -> Any:
    """Start a fleet's directory, which starts everything else.

    Raises:
        FleetError: the fleet runs already.
    """
    made = ray.remote(Directory).options(
        name=DIRECTORY,
        namespace=namespace(fleet),
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=16,
        resources=ON_HEAD,
    )
    try:
        return made.remote(guarded, *in_pieces(plan))
    except ValueError as error:
        raise FleetError(f"a fleet called {fleet} runs there already; first: mien fleet stop {fleet}") from error
