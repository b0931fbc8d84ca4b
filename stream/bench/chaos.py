"""Fault injection every few seconds into a session, observed by a subscriber: masked, lost, recovered.

Nothing is simulated: processes are killed and stopped by signals, the camera is a server that disappears, the
microphone a sound card that is unloaded, and garbage arrives over real sockets. Only the wall clock step is made inside
the processes, since the machine's clock is shared.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq

from mien.messages import WORKERS, Prediction, Status
from mien.stream.bench.devices import CameraServer, SoundCard
from mien.stream.bench.paced import running
from mien.stream.bus.sockets import Receiver
from mien.stream.processes.child import PROGRAM
from mien.stream.processes.plan import Session

WARM_UP_S = 15.0
AWAY_S = 4.0  # how long a device is gone
_PATIENCE_S = 15.0  # timeout of a recovery, even if faults follow at shorter intervals
_GARBAGE = 1000
_RECOVERY_LIMIT_S, _GROWTH_LIMIT = 5.0, 0.05


@dataclass(frozen=True)
class Fault:
    """A fault and its repair.

    Attributes:
        modality: to be masked by it; "" if it should interrupt predictions, None if it should have no effect.
        repair: undoes it after AWAY_S; recovery is timed from there.
    """

    name: str
    inject: Callable[[], object]
    modality: str | None = None
    repair: Callable[[], object] | None = None


@dataclass
class Outcome:
    """Effect of a fault. Times in s; None: it did not happen."""

    fault: str
    at_s: float
    masked_s: float | None = None
    recovered_s: float | None = None
    lost: int = 0
    longest_silence_s: float = 0.0
    unexplained: list[str] = field(default_factory=list)
    reason: str | None = None
    memory_mb: float = 0.0


class Chaos:
    """Runs a session and injects faults.

    Args:
        session: to run; on `camera` and `card`, if given.
        every_s: between two faults.
        report: called with each outcome as soon as it is known.
    """

    def __init__(
        self,
        session: Session,
        every_s: float,
        report: Callable[[Outcome], None],
        camera: CameraServer | None = None,
        card: SoundCard | None = None,
    ) -> None:
        self._session = session
        self._every_s = every_s
        self._report = report
        self._camera, self._card = camera, card
        self._random = np.random.default_rng(0)
        self._log = GapLog(session.workers)
        self._started_s = 0.0

    def run(self, seconds: float, stopping: threading.Event) -> dict[str, Any]:
        """Run for `seconds`, or until told to stop. Returns the figures.

        Raises:
            MienError: a process could not start.
        """
        outcomes: list[Outcome] = []
        program = (*PROGRAM[:-1], "mien.stream.bench.stepped")
        with running(self._session, stopping, program) as live:
            if live is None:
                return {}
            self._supervisor, self._subscriber = live
            self._supervisor.start()
            self._follow(WARM_UP_S, stopping)
            faults = self._faults()
            pending: list[Fault] = []
            self._started_s = time.monotonic()
            while not stopping.is_set() and time.monotonic() < self._started_s + seconds:
                if not pending:
                    pending = [faults[index] for index in self._random.permutation(len(faults))]
                outcomes.append(self._run_fault(pending.pop(), stopping))
                self._report(outcomes[-1])
        return self._summary(outcomes)

    def _faults(self) -> list[Fault]:
        workers = ("inference", *self._session.workers)
        faults = []
        for worker in workers:
            modality = WORKERS.get(worker, "")
            faults.append(Fault(f"kill -9 {worker}", lambda w=worker: self._signal(w, "SIGKILL"), modality))  # type: ignore[misc]
            if hasattr(signal, "SIGSTOP"):
                faults.append(Fault(f"hang {worker}", lambda w=worker: self._signal(w, "SIGSTOP"), modality))  # type: ignore[misc]
        if self._camera is not None:
            faults.append(Fault("camera gone", self._camera.switch_off, "vision", self._camera.switch_on))
        if self._card is not None:
            faults.append(Fault("microphone gone", self._card.pull_out, "audio", self._card.plug_in))
        faults.append(Fault("1000 garbage messages", lambda: _in_background(self._throw_garbage)))
        faults.append(Fault("subscriber that never reads", lambda: _in_background(self._never_read)))
        if hasattr(signal, "SIGUSR1"):
            stepped = str(self._random.choice(workers))
            faults.append(Fault(f"wall clock of {stepped} an hour on", lambda: self._signal(stepped, "SIGUSR1")))
        return faults

    def _run_fault(self, fault: Fault, stopping: threading.Event) -> Outcome:
        begun_s = time.monotonic()
        before = [p for at_s, p in self._log.arrivals if at_s > begun_s - 5.0]
        rate_hz = len(before) / 5.0
        lost_mark = self._subscriber.lost
        outcome = Outcome(fault.name, begun_s - self._started_s)

        def is_healthy(prediction: Prediction) -> bool:
            if fault.modality:
                note_mask(prediction)
                return outcome.masked_s is not None and fault.modality not in prediction.absent
            return fault.modality is None or prediction.run != run

        def note_mask(prediction: Prediction) -> None:
            if outcome.masked_s is None and fault.modality in prediction.absent:
                outcome.masked_s = time.monotonic() - begun_s
                outcome.reason = prediction.absent[fault.modality]

        run = before[-1].run if before else None
        fault.inject()
        repaired_s = begun_s
        if fault.repair is not None:
            self._follow(AWAY_S, stopping, note_mask)
            fault.repair()
            repaired_s = time.monotonic()
        if self._follow(max(self._every_s - (repaired_s - begun_s), _PATIENCE_S), stopping, is_healthy):
            outcome.recovered_s = time.monotonic() - repaired_s if fault.modality is not None else 0.0
        self._follow(begun_s + self._every_s - time.monotonic(), stopping)
        silences = [end_s - start_s for start_s, end_s in self._log.silences(begun_s)]
        outcome.longest_silence_s = max(silences, default=0.0)
        lost = self._subscriber.lost - lost_mark
        outcome.lost = lost + sum(int(silence_s * rate_hz) for silence_s in silences if silence_s > SILENCE_S)
        outcome.unexplained = self._log.unexplained(begun_s)
        if lost:
            outcome.unexplained.append(f"{lost} numbers missing")
        if fault.modality is None and outcome.longest_silence_s > SILENCE_S:
            outcome.recovered_s = outcome.longest_silence_s
        outcome.memory_mb = sum(values[-1][1] for values in self._log.memory.values())
        self._log.forget()
        return outcome

    def _follow(
        self, seconds: float, stopping: threading.Event, condition: Callable[[Prediction], object] = lambda _: False
    ) -> bool:
        """Supervise the session; True as soon as a prediction meets the condition."""
        deadline_s = time.monotonic() + seconds
        while not stopping.is_set() and time.monotonic() < deadline_s:
            self._supervisor.tend()
            self._supervisor.drain_notes()  # duplicates its statuses
            met = False
            for prediction in self._subscriber.wait(0.02):
                self._log.add_prediction(prediction)
                met = bool(condition(prediction)) or met
            self._log.add_statuses(self._subscriber.statuses)
            if met:
                return True
        return False

    def _signal(self, worker: str, name: str) -> None:
        os.kill(self._supervisor.processes()[worker], getattr(signal, name))

    def _throw_garbage(self) -> None:
        """Half as raw bytes on the ports, half as ZeroMQ messages."""
        random = np.random.default_rng(1)
        endpoints = [self._session.config.bus.address(worker) for worker in ("inference", *self._session.workers)]
        for number in range(_GARBAGE // 2):
            host, _, port = endpoints[number % len(endpoints)].removeprefix("tcp://").rpartition(":")
            try:
                with socket.create_connection((host, int(port)), timeout=1.0) as connection:
                    connection.sendall(random.bytes(int(random.integers(1, 4096))))
            except OSError:
                continue
        for endpoint in endpoints:
            sender: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XSUB)
            sender.setsockopt(zmq.LINGER, 500)
            sender.connect(endpoint)
            time.sleep(0.1)
            for _ in range(_GARBAGE // 2 // len(endpoints)):
                frames = [random.bytes(int(random.integers(0, 512))) for _ in range(int(random.integers(1, 5)))]
                try:
                    sender.send_multipart(frames, zmq.DONTWAIT)
                except zmq.Again:
                    break
            sender.close()

    def _never_read(self) -> None:
        receiver = Receiver(self._session.config.bus.address(), (b"",))
        time.sleep(self._every_s * 0.8)
        receiver.close()

    def _summary(self, outcomes: list[Outcome]) -> dict[str, Any]:
        recovered = [o.recovered_s for o in outcomes if o.recovered_s is not None]
        masked = [o.masked_s for o in outcomes if o.masked_s is not None]
        p95_s = float(np.percentile(recovered, 95)) if recovered else None
        growth = self._log.growth()
        unexplained = [text for outcome in outcomes for text in outcome.unexplained]
        return {
            "faults": [
                {name: round(value, 3) if isinstance(value, float) else value for name, value in vars(outcome).items()}
                for outcome in outcomes
            ],
            "predictions": self._log.count,
            "lost": sum(outcome.lost for outcome in outcomes),
            "masked_max_s": round(max(masked), 3) if masked else None,
            "recovered_p95_s": round(p95_s, 3) if p95_s is not None else None,
            "memory_growth": growth,
            "unexplained_gaps": unexplained,
            "holds": {
                "every fault survived": len(recovered) == len(outcomes),
                "recovered p95 <= 5 s": p95_s is not None and p95_s <= _RECOVERY_LIMIT_S,
                "no process grows > 5 %": all(g is None or g <= _GROWTH_LIMIT for g in growth.values()),
                "every gap explained": not unexplained,
            },
        }


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


SILENCE_S = 0.5  # a longer gap without predictions must be explained
_BEHIND_MS = 2500.0  # a worker with more lag explains a gap by it
_OLD_ENOUGH_S = 20.0  # age at which a process has loaded everything, so that its memory can be compared
_KEPT = 1000


class GapLog:
    """Log of predictions with their arrival times, and of what statuses reported.

    Args:
        workers: capture workers of the session; masks of other modalities are intended.

    Attributes:
        arrivals: (when, prediction), the newest thousand. count: total number.
        memory: per process, (when, MB), once it has loaded everything.
    """

    def __init__(self, workers: Collection[str]) -> None:
        self.arrivals: list[tuple[float, Prediction]] = []
        self.count = 0
        self.memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._workers = workers
        self._reports: list[tuple[float, str]] = []
        self._newest: dict[str, Status] = {}
        self._since_s: dict[tuple[str, int], float] = {}

    def add_prediction(self, prediction: Prediction) -> None:
        self.arrivals.append((time.monotonic(), prediction))
        self.count += 1

    def add_statuses(self, statuses: Mapping[str, Status]) -> None:
        now_s = time.monotonic()
        for worker, status in statuses.items():
            before = self._newest.get(worker)
            if status is before:
                continue
            self._newest[worker] = status
            # An error remains in the status after it is over; only a new one, or a state, explains the present.
            is_new = status.last_error is not None and (before is None or status.last_error != before.last_error)
            behind = status.lag_ms is not None and status.lag_ms > _BEHIND_MS
            if is_new or behind or status.state in ("degraded", "failed", "starting"):
                self._reports.append((now_s, worker))
            # Inference reports which modalities are missing as a whole, and why.
            self._reports += [(now_s, each) for each in WORKERS if f"absent.{WORKERS[each]}" in status.detail]
            if status.rss_mb is None or not status.run:
                continue
            if now_s - self._since_s.setdefault((worker, status.run), now_s) >= _OLD_ENOUGH_S:
                self.memory[worker].append((now_s, status.rss_mb))

    def forget(self) -> None:
        del self._reports[:-_KEPT]
        del self.arrivals[:-_KEPT]

    def silences(self, since_s: float) -> list[tuple[float, float]]:
        """Gaps between two predictions, from `since_s` on: start and end."""
        times_s = [since_s, *(at_s for at_s, _ in self.arrivals if at_s >= since_s)]
        return list(itertools.pairwise(times_s))

    def unexplained(self, since_s: float) -> list[str]:
        """Gaps and masks since then that no status explained."""
        found = [
            f"silence of {end_s - begin_s:.1f} s"
            for begin_s, end_s in self.silences(since_s)
            if end_s - begin_s > SILENCE_S and not self._explained(begin_s, end_s, None)
        ]
        for worker in self._workers:
            found += [
                f"{WORKERS[worker]} masked for {end_s - begin_s:.1f} s"
                for begin_s, end_s in self._masks(WORKERS[worker], since_s)
                if not self._explained(begin_s, end_s, worker)
            ]
        return found

    def growth(self) -> dict[str, float | None]:
        """Per process, memory of the last fifth over that of the first, minus 1; None if there is too little data."""
        growth: dict[str, float | None] = {}
        for worker, values in self.memory.items():
            fifth = len(values) // 5
            first, last = ([mb for _, mb in part] for part in (values[:fifth], values[-fifth:]))
            growth[worker] = round(float(np.median(last) / np.median(first)) - 1, 4) if fifth >= 3 else None
        return growth

    def _masks(self, modality: str, since_s: float) -> list[list[float]]:
        spans: list[list[float]] = []
        for at_s, prediction in self.arrivals:
            if at_s < since_s or modality not in prediction.absent:
                continue
            if spans and at_s - spans[-1][1] < SILENCE_S:
                spans[-1][1] = at_s
            else:
                spans.append([at_s, at_s])
        return spans

    def _explained(self, begin_s: float, end_s: float, worker: str | None) -> bool:
        """Whether a status reported a fault at that time, as soon as one could arrive."""
        return any(
            begin_s - 1.0 <= at_s <= end_s + 5.0 and (report in ("supervisor", worker) or worker is None)
            for at_s, report in self._reports
        )
