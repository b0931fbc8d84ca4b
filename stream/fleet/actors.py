"""A fleet's actors in Ray: created on their nodes, and rediscovered by a restarted directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from mien.config import BusConfig
from mien.stream.fleet.capture import CaptureHost
from mien.stream.fleet.cluster import GATEWAY, ON_HEAD, namespace
from mien.stream.fleet.gateway import Gateway
from mien.stream.fleet.orders import MemberOrder
from mien.stream.fleet.plan import Plan
from mien.stream.fleet.pool import PoolHost
from mien.stream.fleet.roster import Kind, Member, Node

_ANSWER_S = 3.0


class Actors:
    """Creates and finds actors. They are named and detached: they outlive their creator.

    Args:
        ray: the module, connected. guarded: whether they serve other machines.
    """

    def __init__(self, ray: Any, plan: Plan, guarded: bool) -> None:
        self._ray, self._plan, self._guarded = ray, plan, guarded
        self._namespace = namespace(plan.fleet)

    def member(self, kind: Kind, name: str, node: Node, room: int, gateway: str, spare: bool) -> tuple[Member, Any]:
        """Create a capture host or a pool on a node. `spare`: whether no session is waiting for it."""
        plan = self._plan
        cpus = plan.capture.cpus * room if kind == "capture" else plan.pools.cpus
        gpus = plan.pools.gpus if kind == "pool" else 0.0
        member = Member(name, kind, node.id, room, cpus, gpus)
        made = self._ray.remote(CaptureHost if kind == "capture" else PoolHost).options(
            name=name,
            namespace=self._namespace,
            lifetime="detached",
            num_cpus=cpus,
            num_gpus=gpus,
            max_concurrency=2,
            scheduling_strategy=self._at(node.id),
        )
        host = node.host if self._guarded else "127.0.0.1"
        about = msgspec.json.encode(member)
        if kind == "capture":
            handle = made.remote(
                plan.fleet, host, guarded=self._guarded, recording=plan.recording, gateway=gateway, about=about
            )
        else:
            base = msgspec.json.encode(plan.base)
            handle = made.remote(plan.fleet, name, host, base, room, guarded=self._guarded, about=about, spare=spare)
        return member, handle

    def gateway(self, nodes: list[Node]) -> Any:
        """Create the gateway on a node permitted by the plan; Ray restarts it when it dies."""
        plan = self._plan.gateway
        bus = BusConfig(host=plan.host, port=plan.port, high_water_mark=self._plan.base.bus.high_water_mark)
        fitting = [node.id for node in nodes if plan.place and node.fits(plan.place)]
        made = self._ray.remote(Gateway).options(
            name=GATEWAY,
            namespace=self._namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=4,
            **({"scheduling_strategy": self._at(fitting[0])} if fitting else {"resources": ON_HEAD}),
        )
        return made.remote(self._plan.fleet, bus, guarded=self._guarded, by_ray=True)

    def found(self) -> Iterator[tuple[Member, Any, bytes]]:
        """Running members created by a previous directory, and their reports."""
        requests = {}
        for actor in self._ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            if actor["namespace"] != self._namespace or not name.startswith(("capture-", "pool-")):
                continue
            with suppress(ValueError):
                handle = self._ray.get_actor(name, namespace=self._namespace)
                synced = handle.sync.remote(msgspec.json.encode(MemberOrder(-1)))
                requests[name] = handle, handle.describe.remote(), synced
        deadline_s = time.monotonic() + _ANSWER_S  # for all together: a lost node has many
        for handle, described, synced in requests.values():
            try:
                left_s = max(deadline_s - time.monotonic(), 0.05)
                about, answer = self._ray.get([described, synced], timeout=left_s)
                member = msgspec.json.decode(about, type=Member)
            except Exception:  # it is unusable
                with suppress(Exception):
                    self._ray.kill(handle)
                continue
            yield member, handle, answer

    def _at(self, node: str) -> Any:
        return self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
