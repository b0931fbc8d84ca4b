"""The supervisor's view of a session's processes, published for subscribers.

A supervisor has no socket of its own. It passes its statuses to inference through a pipe; while inference itself is
down nothing is published, and its first status afterwards says why.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping

from mien.clock import NS_PER_MS, NS_PER_S, Clock, read_anchor_ns
from mien.messages import Status, WorkerState
from mien.stream.monitoring.meter import ResourceMeter

_STEP_NS = 250 * NS_PER_MS  # a larger jump between wall clock and session clock is a step, not drift


class Report:
    """Statuses that the supervisor publishes.

    Attributes:
        restarts: how often each process was restarted.
        faults: per faulty process, why.
        last_error: the newest fault, even after recovery.
        recording_error: why a requested recording has stopped.
    """

    def __init__(self, session: str, clock: Clock) -> None:
        self.restarts: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.last_error: str | None = None
        self.recording_error: str | None = None
        self._session = session
        self._clock = clock
        self._run = secrets.randbits(48)
        self._wall_ns = read_anchor_ns()
        self._wall_step_ns = 0
        self._resources = ResourceMeter()

    def add_fault(self, worker: str, fault: str) -> None:
        """Mark a process as faulty, late or dead."""
        self.faults[worker] = self.last_error = fault

    def wall_step(self) -> str | None:
        """A note if the wall clock was set or the machine slept since the last call."""
        wall_ns = read_anchor_ns()
        step_ns, self._wall_ns = wall_ns - self._wall_ns, wall_ns
        if abs(step_ns) <= _STEP_NS:
            return None
        self._wall_step_ns += step_ns
        return (
            f"the time of day moved by {step_ns / NS_PER_S:+.1f} s (it was set, or this machine slept); "
            "session time is not affected"
        )

    def of_session(self, states: Mapping[str, str]) -> Status:
        """The supervisor's own status.

        Args:
            states: of each process: running, late, starting, down, crash loop, ended.
        """
        cpu_percent, rss_mb = self._resources.read()
        detail: dict[str, str | float | int | bool | None] = {"clock_step_ms": round(self._wall_step_ns / NS_PER_MS)}
        for worker, state in states.items():
            detail[f"{worker}.state"] = state
            detail[f"{worker}.restarts"] = self.restarts[worker]
        if self.recording_error is not None:
            detail |= {"recorder.state": "failed", "recorder.error": self.recording_error}
        well = self.recording_error is None and all(state in ("running", "ended") for state in states.values())
        return Status(
            session=self._session,
            worker="supervisor",
            run=self._run,
            t_ns=self._clock.now_ns(),
            state="running" if well else "degraded",
            pid=os.getpid(),
            last_error=self.last_error if self.recording_error is None else f"not recorded: {self.recording_error}",
            cpu_percent=cpu_percent,
            rss_mb=rss_mb,
            detail=detail,
        )

    def of_worker(self, worker: str, state: WorkerState) -> Status:
        """A status on behalf of a process that cannot send one itself: `run` and `pid` are 0."""
        return Status(
            session=self._session,
            worker=worker,
            run=0,
            t_ns=self._clock.now_ns(),
            state=state,
            pid=0,
            last_error=self.faults.get(worker),
        )
