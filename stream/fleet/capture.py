"""Capture of sessions on one node: each supervised as a session on a single machine is, with inference elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from mien.config import BusConfig, Config
from mien.errors import MienError, SourceError
from mien.stream.bus.ports import free_ports
from mien.stream.fleet.node import NodeKeys, Ordered
from mien.stream.fleet.orders import FULL, Captured, CaptureReport, CaptureTask, MemberOrder
from mien.stream.fleet.plan import SYNTHETIC, RecordingPlan
from mien.stream.fleet.synthetic import Batch, match_batches
from mien.stream.processes.control import Order
from mien.stream.processes.plan import Session, plan_session
from mien.stream.processes.supervisor import Supervisor
from mien.stream.recording.control import RecorderProcess

_TEND_S = 0.1
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_MOST_ORDERS = 64
_LISTENER_S = 30.0


class CaptureHost(Ordered[MemberOrder[CaptureTask]]):
    """Captures its assigned sessions.

    Args:
        fleet: its name. host: the node's address. guarded: whether workers serve other machines.
        recording: what to record, and where. gateway: where predictions are published, for a recorder.
    """

    def __init__(
        self,
        fleet: str,
        host: str,
        *,
        guarded: bool,
        recording: RecordingPlan,
        gateway: str = "",
        about: bytes = b"",
    ) -> None:
        super().__init__(NodeKeys(fleet), MemberOrder[CaptureTask], about)
        self._host, self._guarded = host, guarded
        self._recording, self._gateway = recording, gateway
        self._tasks: dict[str, CaptureTask] = {}
        self._running: dict[str, _Run] = {}
        self._batches: list[Batch] = []  # of synthetic sessions

    def _apply(self, order: MemberOrder[CaptureTask]) -> CaptureReport:
        if order.tasks is not None and order.since in (FULL, self._version):
            self._version = order.version
            self._tasks = order.applied(self._tasks)
            self._match(self._tasks)
        sessions = {name: run.report() for name, run in self._running.items()}
        for batch in self._batches:
            sessions |= batch.report()
        return CaptureReport(self._version, self._keys.public, sessions)

    def close(self) -> None:
        with self._lock:
            runs = list(self._running.values())
            self._running.clear()
            match_batches(self._batches, {}, self._bus(0))
        for run in runs:
            run.end()
        for run in runs:
            run.join()

    def _match(self, tasks: dict[str, CaptureTask]) -> None:
        made = {name: task for name, task in tasks.items() if SYNTHETIC.fullmatch(task.config.video.source)}
        filmed = {name: task for name, task in tasks.items() if name not in made}
        for name, run in list(self._running.items()):
            if name not in filmed or filmed[name].incarnation != run.task.incarnation:
                run.end()
                del self._running[name]
        for name, task in filmed.items():
            if name in self._running:
                if task.heard:
                    self._running[name].has_listener.set()
            else:
                self._running[name] = _Run(task, self._bus(task.port), self._recording, self._gateway)
        match_batches(self._batches, made, self._bus(0))

    def _bus(self, port: int) -> BusConfig:
        keys = self._keys.folder if self._guarded else ""
        return BusConfig(host=self._host, port=port or 5560, keys=keys)


class _Run:
    """One session: started, supervised, and restarted if it fails as a whole."""

    def __init__(self, task: CaptureTask, bus: BusConfig, recording: RecordingPlan, gateway: str) -> None:
        self.task = task
        self._bus, self._recording, self._gateway = bus, recording, gateway
        self._stopping, self.has_listener = threading.Event(), threading.Event()
        self._captured = Captured(task.incarnation, "starting")
        self._orders: deque[Order] = deque(maxlen=_MOST_ORDERS)
        self._thread = threading.Thread(target=self._keep_running, name=task.config.session, daemon=True)
        self._thread.start()

    def report(self) -> Captured:
        orders = [self._orders.popleft() for _ in range(len(self._orders))]
        # A supervisor's status once a second: if several are queued, the newest suffices.
        newest = {(order.worker, order.status is None): order for order in orders}
        return msgspec.structs.replace(self._captured, orders=tuple(newest.values()))

    def end(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        self._thread.join(5.0)

    def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                self._run()
                return
            except (MienError, OSError) as error:
                failures = 0 if time.monotonic() - began_s > 60 else failures + 1
                self._update(state="failed", error=str(error), endpoints={})
            self._stopping.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])

    def _run(self) -> None:
        bus = msgspec.structs.replace(self._bus, port=free_ports(self._bus.host, self._bus.port))
        session = plan_session(msgspec.structs.replace(self.task.config, bus=bus))
        supervisor, recorder = Supervisor(session, inference=self._orders.append), None
        try:
            supervisor.launch()
            if not supervisor.wait_ready(self._stopping):
                return
            recorder = self._record(session.config)
            self._update_endpoints(session)
            self._await_listener(session)
            supervisor.start()
            self._update(state="running")
            while not self._stopping.wait(_TEND_S):
                supervisor.tend()
                for note in supervisor.drain_notes():
                    self._update(error=note)
                if supervisor.ended and self._captured.state != "ended":
                    self._update(state="ended")
                if recorder is not None and recorder.state.error:
                    supervisor.report_recording(recorder.state.error)
                    recorder = None
        finally:
            if recorder is not None:
                recorder.stop()
            supervisor.stop()

    def _await_listener(self, session: Session) -> None:
        """Clips wait until inference listens; cameras start at once."""
        deadline_s = time.monotonic() + _LISTENER_S
        while session.origin != "live" and not self.has_listener.wait(0.05) and not self._stopping.is_set():
            if time.monotonic() > deadline_s:
                return

    def _update_endpoints(self, session: Session) -> None:
        bus = session.config.bus
        self._update(
            endpoints={worker: bus.address(worker) for worker in session.workers},
            workers=session.workers,
            absent=session.absent,
            origin=session.origin,
            label=session.label,
            error="; ".join(session.notes),
        )

    def _update(self, **changed: object) -> None:
        self._captured = msgspec.structs.replace(self._captured, **changed)

    def _record(self, config: Config) -> RecorderProcess | None:
        plan = self._recording
        if not plan.folder:
            return None
        folder = Path(plan.folder).expanduser()
        if not folder.is_dir():
            raise SourceError(f"the folder for recordings {folder} is not on this node; make it, or record elsewhere")
        path = folder / f"{config.session}-{time.strftime('%Y%m%d-%H%M%S')}-{self.task.incarnation}.mcap"
        bus = msgspec.structs.replace(
            config.bus, workers=msgspec.structs.replace(config.bus.workers, inference=self._gateway)
        )
        return RecorderProcess(path, bus, config.session, video=plan.video, audio=plan.audio)
