"""Starts a session's processes, keeps them running, and stops them all.

Each process is this same program (`python -m mien capture video --supervised`): the same on every system, and nothing
is inherited by accident. Two pipes connect it to us, see `mien.stream.processes.control`.
"""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from mien.clock import NS_PER_MS, Clock
from mien.errors import SourceError, WorkerError
from mien.messages import ModalitySpec
from mien.models.checkpoint import check_extractors, load_checkpoint
from mien.stream.monitoring.report import Report
from mien.stream.processes.child import PROGRAM, Child, Event, backoff_s, log_path
from mien.stream.processes.control import HEARTBEAT_TIMEOUT_S, Assignment, Order
from mien.stream.processes.plan import Session, with_source

_READY_TIMEOUT_S = 180.0  # the first start on a slow machine compiles the networks
_LEAD_MS = 150  # from the start order to a clip's time zero: enough for every process to be listening
_START_STEP_NS = 100 * NS_PER_MS  # the longest slot of any modality
_RESTART_TIMEOUT_S = 60.0
_STOP_S = 1.2
CRASH_LOOP = 5  # consecutive crashes
_SOURCE_BACKOFF_S = 2.0  # for a missing device: it may return at any time
_LATE_S = 0.4  # without a heartbeat a process counts as late, and its modality is masked
_AWAY_S = 0.3  # between two checks of the processes; a longer gap means that we were suspended
_STATUS_S = 1.0


class Supervisor:
    """Owns the processes of one session.

    Args:
        inference: takes orders for an inference process elsewhere; None runs it here.
        program: starts every process, for instance another interpreter's `mien`.

    Attributes:
        model: checkpoint and engine, once inference is ready.
        ended: whether every clip has been played and fully predicted; `predictions` is then how many there were.
    """

    def __init__(
        self,
        session: Session,
        inference: Callable[[Order], None] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.session = session
        self._elsewhere, self._program = inference, program
        self._workers = session.workers if inference is not None else ("inference", *session.workers)
        self.clock = Clock()
        self.model = ""
        self.ended = False
        self.predictions = 0
        self._assignment = Assignment(
            session.config, self.clock.anchor_ns, session.workers, session.absent, session.origin, session.label
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._children: dict[str, Child] = {}
        self._start_ns: int | None = None
        self._deaths: Counter[str] = Counter()  # consecutive
        self._report = Report(session.config.session, self.clock)
        self._due: dict[str, float] = {}
        self._tended_s = self._reported_s = 0.0
        self._notes: list[str] = []
        self._specs: dict[str, ModalitySpec] = {}

    def launch(self) -> None:
        """Start all processes. They load their models in parallel."""
        for worker in self._workers:
            self._spawn(worker)

    def waiting_for(self) -> list[str]:
        """The processes that are not ready yet."""
        return [worker for worker, child in self._children.items() if not child.ready]

    def wait_ready(self, stopping: threading.Event) -> bool:
        """Wait until every process is ready. False if told to stop before.

        Raises:
            MienError: as reported by the process that failed; WorkerError if one died, or is not ready in time.
        """
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while self.waiting_for():
            if stopping.is_set():
                return False
            if time.monotonic() > deadline_s:
                names = ", ".join(self.waiting_for())
                folder = log_path(self.session.config, "inference").parent
                raise WorkerError(f"not ready after {_READY_TIMEOUT_S:.0f} s: {names}; see {folder}")
            try:
                event = self._events.get(timeout=0.1)
            except queue.Empty:
                continue
            self._note_event(event)
            if event.state == "failed":
                raise event.as_error()
            if event.state == "exited":
                raise WorkerError(self._describe_exit(event))
        # Before the first row: a model that was trained on other rows would give wrong numbers, not errors.
        check_extractors(load_checkpoint(self.session.config.inference.checkpoint), self._specs.values())
        return True

    def start(self) -> None:
        """Order all processes to start at the same time."""
        fast = self.session.config.clip.fast
        # A multiple of every slot's length: a clip's rows fall into the same slots however and whenever it plays.
        first_ns = self.clock.now_ns() + _LEAD_MS * NS_PER_MS
        self._start_ns = 0 if fast else -(-first_ns // _START_STEP_NS) * _START_STEP_NS
        for child in self._children.values():
            child.start(self._start_ns)
        self._tended_s = time.monotonic()
        self._publish_report()

    def processes(self) -> dict[str, int]:
        return {worker: child.process.pid for worker, child in self._children.items() if child.process.poll() is None}

    def tend(self) -> None:
        """Check on the processes: call it a few times a second.

        Raises:
            WorkerError: a process died that cannot be replaced: a clip played in full must not miss anything.
        """
        while not self._events.empty():
            event = self._events.get_nowait()
            self._note_event(event)
            child = self._children.get(event.worker)
            if event.state == "exited" and child is not None and child.process.pid == event.pid and not child.ended:
                self._on_exit(event)
        now_s = time.monotonic()
        # While we ourselves were not running (Ctrl-Z, suspend, overload), the silence was ours.
        away_s = now_s - self._tended_s
        self._tended_s = now_s
        for child in self._children.values():
            if away_s > _AWAY_S:
                child.heard_s = min(child.heard_s + away_s - _AWAY_S, now_s)
            self._check_heartbeat(child, now_s)
        for worker in [worker for worker, due_s in self._due.items() if due_s <= now_s]:
            del self._due[worker]
            self._spawn(worker)
            if self._start_ns is not None:
                self._children[worker].start(self._start_ns)
        if now_s - self._reported_s >= _STATUS_S:
            self._publish_report()

    def report_recording(self, error: str) -> None:
        """Report in the statuses that the session is no longer recorded, and why."""
        self._report.recording_error = error
        self._publish_report()

    def stop(self) -> None:
        """Stop all processes: asked, then terminated, then killed. Takes at most about two seconds."""
        self._due.clear()
        for child in self._children.values():
            child.release()
        deadline_s = time.monotonic() + _STOP_S
        for kills in (False, True):
            for child in self._children.values():
                try:
                    child.process.wait(max(deadline_s - time.monotonic(), 0.01))
                except subprocess.TimeoutExpired:
                    child.process.kill() if kills else child.process.terminate()
            deadline_s = time.monotonic() + 0.3
        for child in self._children.values():
            child.process.wait(2.0)
            child.sweep()

    def drain_notes(self) -> list[str]:
        """Events since the last call, for display."""
        notes, self._notes = self._notes, []
        return notes

    def _spawn(self, worker: str) -> None:
        self._children[worker] = Child(worker, self._assignment, self._events, self._program)

    def _check_heartbeat(self, child: Child, now_s: float) -> None:
        """Detect a late process, and kill a hung one; its exit is then an event like any other."""
        if child.ended or child.process.poll() is not None or self.session.config.clip.fast:
            return
        child.check_alive(_RESTART_TIMEOUT_S if self._report.restarts[child.worker] else _READY_TIMEOUT_S)
        late = now_s - child.heard_s > _LATE_S and child.timeout_s <= HEARTBEAT_TIMEOUT_S
        if child.ready and not child.hung and late != child.late:
            child.late = not child.late
            if child.late:
                self._mark_unhealthy(child.worker, f"the {child.worker} process does not answer", dead=False)
            else:
                self._mark_healthy(child.worker)

    def _mark_unhealthy(self, worker: str, fault: str, *, dead: bool) -> None:
        """Report a faulty process, and mask its modality."""
        self._report.add_fault(worker, fault)
        if worker != "inference":
            status = self._report.of_worker(worker, "failed" if dead else "degraded")
            self._order(Order(status=status, worker=worker, fault=fault, dead=dead))
        self._publish_report()

    def _mark_healthy(self, worker: str) -> None:
        self._report.faults.pop(worker, None)
        if worker == "inference":
            # A restarted process knows nothing of what happened before.
            for other, fault in list(self._report.faults.items()):
                child = self._children.get(other)
                self._mark_unhealthy(other, fault, dead=child is None or not child.late)
        else:
            self._order(Order(worker=worker))
        self._publish_report()

    def _order(self, order: Order) -> None:
        if self._elsewhere is not None:
            self._elsewhere(msgspec.structs.replace(order, session=self.session.config.session))
            return
        child = self._children.get("inference")
        if child is not None and child.ready and not child.late and child.process.poll() is None:
            child.send({"order": order})

    def _publish_report(self) -> None:
        self._reported_s = time.monotonic()
        note = self._report.wall_step()
        if note:
            self._notes.append(note)
        states = {worker: self._state(worker) for worker in self._workers}
        self._order(Order(status=self._report.of_session(states)))

    def _state(self, worker: str) -> str:
        child = self._children.get(worker)
        if worker in self._due or child is None or child.process.poll() is not None:
            return "crash loop" if self._deaths[worker] >= CRASH_LOOP else "down"
        if child.ended:
            return "ended"
        return "late" if child.late else "running" if child.ready else "starting"

    def _note_event(self, event: Event) -> None:
        child = self._children.get(event.worker)
        if child is None or child.process.pid != event.pid:
            return
        if event.state == "ready":
            child.note_ready()
            if event.worker == "inference":
                self.model = str(event.facts.get("model", ""))
            self._mark_healthy(event.worker)
            if "spec" in event.facts:
                self._specs[event.worker] = msgspec.convert(event.facts["spec"], ModalitySpec)
        elif event.state == "using":
            # A restarted process continues with the chosen source.
            config = with_source(self._assignment.config, event.facts["section"], event.facts["source"])
            self._assignment = msgspec.structs.replace(self._assignment, config=config)
        elif event.state == "ended":
            child.ended = True
            if self._elsewhere is not None:
                self.ended = all(each.ended for each in self._children.values())
            elif event.worker == "inference":
                self.ended = True
                self.predictions = int(event.facts.get("predictions", 0))
        elif event.state == "failed" and self._start_ns is not None:
            self._notes.append(f"{event.worker}: {event.facts.get('error')}")

    def _on_exit(self, event: Event) -> None:
        if self.session.config.clip.fast:
            raise WorkerError(self._describe_exit(event))
        worker, now_s = event.worker, time.monotonic()
        child = self._children[worker]
        child.sweep()
        self._deaths[worker] = child.deaths(self._deaths[worker])
        self._report.restarts[worker] += 1
        delay_s = backoff_s(self._deaths[worker])
        if event.facts.get("code") == SourceError.exit_code:
            delay_s = min(delay_s, _SOURCE_BACKOFF_S)
        self._due[worker] = now_s + delay_s
        note = self._describe_exit(event)
        if self._deaths[worker] >= CRASH_LOOP:
            note += f"; it keeps dying ({self._deaths[worker]} times in a row), the others continue without it"
        self._notes.append(f"{note}; restarting it in {delay_s:g} s")
        self._mark_unhealthy(worker, f"{self._cause(event)}; it is being restarted", dead=True)

    def _cause(self, event: Event) -> str:
        return f"the {event.worker} process {self._children[event.worker].cause(event)}"

    def _describe_exit(self, event: Event) -> str:
        return f"{self._cause(event)}, see {self._children[event.worker].log}"
