"""Sessions without cameras, for testing a fleet: rows of the right shape and rate, from generator processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from mien.clock import NS_PER_S
from mien.config import BusConfig
from mien.messages import WORKER_OF
from mien.models.checkpoint import load_checkpoint
from mien.stream.bench.generator import Task, endpoints_of, start_generator
from mien.stream.bench.synthetic import FRAME_HZ
from mien.stream.fleet.orders import Captured, CaptureTask
from mien.stream.fleet.plan import SYNTHETIC
from mien.stream.processes.child import close_input, send_line, wait_or_kill

_BEGIN_S = 0.5


def match_batches(batches: list[Batch], tasks: Mapping[str, CaptureTask], bus: BusConfig) -> None:
    """Change the running batches so that they generate exactly these sessions' messages."""
    sent: dict[str, int] = {}
    for batch in list(batches):
        batch.keep_only({name: task.incarnation for name, task in tasks.items()})
        if batch.sessions:
            sent |= batch.sessions
        else:
            batch.end()
            batches.remove(batch)
    new: dict[str, dict[str, CaptureTask]] = {}
    for name, task in tasks.items():
        if name not in sent:
            new.setdefault(f"{task.config.video.source} {task.config.audio.source}", {})[name] = task
    batches += [Batch(tasks, bus) for tasks in new.values()]


class Batch:
    """A generator process, for sessions requested together."""

    def __init__(self, tasks: Mapping[str, CaptureTask], bus: BusConfig) -> None:
        self.sessions = {name: task.incarnation for name, task in tasks.items()}
        first = next(iter(tasks.values())).config
        found = SYNTHETIC.fullmatch(first.video.source)
        hz = float((found and found.group(1)) or FRAME_HZ)
        specs = load_checkpoint(first.inference.checkpoint).specs
        if first.audio.source == "none":
            specs = tuple(spec for spec in specs if spec.name == "vision")
        task = Task(tuple(tasks), tuple(specs), 0, len(tasks), hz, bus)
        self._process = start_generator(task)
        self._endpoints: dict[str, dict[str, str]] | None = None
        self._reader = threading.Thread(target=self._begin, name="generator", daemon=True)
        self._reader.start()

    def keep_only(self, incarnations: Mapping[str, int]) -> None:
        self.sessions = {name: number for name, number in self.sessions.items() if incarnations.get(name) == number}

    def report(self) -> dict[str, Captured]:
        alive = self._process.poll() is None
        endpoints = self._endpoints or {}
        captured = {}
        for name, number in self.sessions.items():
            if not alive:
                captured[name] = Captured(number, "failed", error="the generator of synthetic rows died")
                continue
            at = {WORKER_OF[modality]: address for modality, address in endpoints.get(name, {}).items()}
            absent = {modality: "switched off" for modality, worker in WORKER_OF.items() if worker not in at}
            state = "running" if at else "starting"
            captured[name] = Captured(number, state, at, tuple(at), absent, "sample", "synthetic")  # type: ignore[arg-type]
        return captured

    def end(self) -> None:
        close_input(self._process)
        wait_or_kill(self._process, 1.0)
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _begin(self) -> None:
        try:
            endpoints = endpoints_of(self._process)
            send_line(self._process, str(time.monotonic_ns() + int(_BEGIN_S * NS_PER_S)))
            self._endpoints = endpoints
        except ValueError:  # closed, or not a generator's answer
            self._endpoints = {}
