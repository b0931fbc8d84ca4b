"""Three raylets on one machine, and a driver that takes commands as JSON lines.

`python -m tests.fleet.cluster`: a process of its own, since what Ray leaves in one is none of pytest's business.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from mien.stream.fleet import cluster
from mien.stream.fleet.directory import open_directory
from mien.stream.fleet.plan import read_plan

ray: Any = cluster.quiet_ray()


class Machines:
    """The raylets, the fleet that runs on them, and what can happen to both."""

    def __init__(self, nodes: int, cpus: float) -> None:
        from ray.cluster_utils import Cluster

        arguments = {"num_cpus": cpus, "object_store_memory": 80 << 20, "include_dashboard": False}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={**arguments, "_system_config": cluster.RAY_SETTINGS, "labels": {"n": "0"}},
        )
        self._arguments = arguments
        self._nodes = [self._cluster.head_node]
        for _ in range(1, nodes):
            self.add()
        self._directory: Any = None
        self._fleet = ""

    def add(self) -> int:
        """One more node; its label n is its number."""
        number = len(self._nodes)
        self._nodes.append(self._cluster.add_node(**self._arguments, labels={"n": str(number)}))
        return number

    def address(self) -> str:
        """To join the cluster at."""
        return str(self._cluster.address)

    def start(self, plan: str) -> list[str]:
        """Start a fleet. Returns the warnings that a person would see."""
        read = read_plan(Path(plan))
        self._fleet = read.fleet
        cluster.join(read.fleet, self._cluster.address)
        self._directory = open_directory(ray, read.fleet, msgspec.msgpack.encode(read), True)
        return cluster.exposed_ports(ray)

    def condition(self) -> Any:
        """Of the fleet; None while its directory does not answer."""
        try:
            return json.loads(ray.get(self._directory.condition.remote(), timeout=10))
        except Exception:
            return None

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of the directory."""
        return ray.get(getattr(self._directory, method).remote(*arguments), timeout=30)

    def kill_actor(self, name: str, which: int = 0, number: int = signal.SIGKILL) -> list[int]:
        """A signal to a process of an actor: its own, or another that it names. Returns all it named."""
        actor = ray.get_actor(name, namespace=cluster.namespace(self._fleet))
        pids = ray.get(actor.processes.remote(), timeout=10)
        os.kill(pids[which], number)
        return list(pids)

    def actors(self) -> list[str]:
        """Names of the fleet's actors."""
        named = ray.util.list_named_actors(all_namespaces=True)
        return sorted(a["name"] for a in named if a["namespace"] == cluster.namespace(self._fleet))

    def ids(self) -> list[str]:
        """Of nodes, by their numbers."""
        return [str(node.node_id) for node in self._nodes]

    def kill_node(self, number: int) -> int:
        """SIGKILL to a raylet and its workers. Returns how many processes that were."""
        raylets = self._nodes[number].all_processes["raylet"]
        pids = [info.process.pid for info in raylets]
        workers = [child for pid in pids for child in psutil.Process(pid).children()]
        for pid in [*pids, *(worker.pid for worker in workers)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids) + len(workers)

    def usage(self) -> dict[str, list[float]]:
        """CPU seconds and MiB, by kind of process, of all that this one started."""
        found: dict[str, list[float]] = {}
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                words, times = process.cmdline(), process.cpu_times()
                kind = _kind(words)
                entry = found.setdefault(kind, [0.0, 0.0, 0.0])
                entry[0] += times.user + times.system
                entry[1] += process.memory_info().rss / 2**20
                entry[2] += 1
        return found

    def demanded(self) -> list[dict[str, float]]:
        """What an autoscaler would be asked for."""
        from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
        from ray.experimental.internal_kv import _internal_kv_get

        return list(json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"[]"))

    def stop(self) -> None:
        """The fleet; another can be started then."""
        self.call("stop")
        ray.kill(self._directory)
        ray.shutdown()

    def end(self) -> None:
        """The fleet, then Ray."""
        with suppress(Exception):
            self.stop()
        ray.shutdown()
        self._cluster.shutdown()


def _kind(words: list[str]) -> str:
    line = " ".join(words)
    for part, name in (
        ("mien infer", "inference"), ("mien capture", "capture"), ("bench.generator", "generator"), ("ray::", ""),
        ("gcs_server", "gcs"), ("raylet/raylet", "raylet"),
    ):  # fmt: skip
        if part in line:
            return name or line.split()[0].removeprefix("ray::").split(".")[0]
    return "ray, other"


def main() -> None:
    """Follow commands: [method, arguments...]."""
    out = os.dup(1)
    os.dup2(2, 1)  # Ray prints
    machines = Machines(int(sys.argv[1]), float(sys.argv[2]))
    os.write(out, b'{"ready": true}\n')
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            reply = {"result": getattr(machines, method)(*arguments)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
        os.write(out, json.dumps(reply).encode() + b"\n")
        if method == "end":
            return
    machines.end()


if __name__ == "__main__":
    main()
