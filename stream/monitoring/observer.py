"""A running session's health, seen from outside: for `mien status`, the health endpoint and the metrics.

It uses only what is published, so it also works from another machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Literal

import msgspec

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import WORKERS, Prediction, Status
from mien.stream.bus.subscriber import Subscriber

SILENT_S = 3.0  # without a prediction: down
_STALE_S = 4.0  # a process whose newest status is older has stopped reporting
_RATE_S = 2.0

_SAME = ("worker", "pid", "fps", "lag_ms", "cpu_percent", "rss_mb", "drops", "last_error")  # as in a status

Verdict = Literal["ok", "degraded", "down"]


class ProcessCondition(msgspec.Struct, frozen=True, kw_only=True):
    """One process. Fields as in `mien.Status`; `state` may also be "silent", "late", "down" or "crash loop".

    A silent process has no rate, lag, load or memory.

    Attributes:
        source: what a worker captures. following: which face, "largest" or "chosen"; None if not reported.
    """

    worker: str
    state: str
    pid: int
    fps: float
    lag_ms: float | None
    cpu_percent: float | None
    rss_mb: float | None
    restarts: int | None
    drops: dict[str, int]
    last_error: str | None
    source: str | None = None
    following: str | None = None


class ModalityCondition(msgspec.Struct, frozen=True, kw_only=True):
    """One modality. `masked`: why it is missing entirely, None if it is not."""

    name: str
    share: float
    age_ms: float | None
    masked: str | None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A session.

    Attributes:
        verdict: "ok"; "degraded": predictions come, but there are problems; "down": none come.
        problems: one line each.
        silent_s: since a prediction, or since a status said not to expect any; None if there never was one.
        lost: predictions that never arrived here.
    """

    verdict: Verdict
    problems: tuple[str, ...]
    session: str | None
    model: str | None
    predictions_per_s: float
    latency_ms: float | None
    silent_s: float | None
    lost: int
    processes: tuple[ProcessCondition, ...]
    modalities: tuple[ModalityCondition, ...]


class Observer:
    """Watches one session of a subscriber.

    Args:
        began_s: when the subscriber began to listen, by `time.monotonic`; now if not given.

    Attributes:
        newest: the newest prediction. statuses: the newest of each process.
    """

    def __init__(self, subscriber: Subscriber, session: str, began_s: float | None = None) -> None:
        self.newest: Prediction | None = None
        self._subscriber, self._session = subscriber, session
        self._began_s = time.monotonic() if began_s is None else began_s
        self._heard_s: float | None = None
        self._arrivals_s: deque[float] = deque(maxlen=1000)
        self._inference: tuple[int, int] | None = None
        self._reported: dict[str, tuple[Status, float]] = {}  # the newest of each process, and when it came

    @property
    def statuses(self) -> dict[str, Status]:
        return self._subscriber.statuses_of(self._session)

    def wait(self, timeout_s: float) -> list[Prediction]:
        """Process and return the predictions that arrive within `timeout_s`."""
        predictions = self._subscriber.wait(timeout_s)
        self.take_in(predictions)
        return predictions

    def close(self) -> None:
        self._subscriber.close()

    def condition(self) -> Condition:
        now_s = time.monotonic()
        silent_s = None if self._heard_s is None else now_s - self._heard_s
        statuses = self.statuses
        processes = tuple(self._processes(statuses, now_s))
        modalities = tuple(self._modalities())
        down = silent_s is None or silent_s > SILENT_S
        problems = [
            f"{process.worker}: {process.state}" + (f", {process.last_error}" if process.last_error else "")
            for process in processes
            if process.state not in ("running", "ready", "starting", "ended")
        ]
        # A modality that is not captured is missing on purpose.
        captured = {modality for worker, modality in WORKERS.items() if worker in statuses}
        problems += [
            f"{modality.name} is masked: {modality.masked}"
            for modality in modalities
            if modality.masked and modality.name in captured
        ]
        if self.newest is not None and self.newest.abstains is not None and not captured:
            problems.append("nothing is captured: no worker has reported")
        if down:
            problems.insert(0, "no predictions" + (f" for {silent_s:.1f} s" if silent_s else ""))
        newest = self.newest
        return Condition(
            verdict="down" if down else "degraded" if problems else "ok",
            problems=tuple(problems),
            session=self._session if newest or statuses else None,
            model=newest.model if newest else None,
            predictions_per_s=round(self._rate(now_s), 1),
            latency_ms=newest.latency.get("total") if newest else None,
            silent_s=silent_s,
            lost=self._subscriber.lost_of(self._session),
            processes=processes,
            modalities=modalities,
        )

    def take_in(self, predictions: Iterable[Prediction]) -> None:
        """Process predictions of the session that the subscriber has received, and its statuses."""
        now_s = time.monotonic()
        for prediction in predictions:
            self.newest, self._heard_s = prediction, now_s
            self._arrivals_s.append(now_s)
        statuses = self.statuses
        for worker, status in statuses.items():
            before, _ = self._reported.get(worker, (None, 0.0))
            if before is None or (before.run, before.t_ns) != (status.run, status.t_ns):  # not one that came twice
                self._reported[worker] = status, now_s
        inference = statuses.get("inference")
        if inference is not None and (inference.run, inference.t_ns) != self._inference:
            self._inference = inference.run, inference.t_ns
            # Once it runs, only predictions prove that it works; they also come without any evidence.
            if inference.state in ("starting", "ready", "ended"):
                self._heard_s = now_s

    def _rate(self, now_s: float) -> float:
        span_s = min(now_s - self._began_s, _RATE_S)
        return sum(at_s > now_s - span_s for at_s in list(self._arrivals_s)) / max(span_s, 0.1)

    def _processes(self, statuses: dict[str, Status], now_s: float) -> Iterable[ProcessCondition]:
        ages_s = self._ages_s(statuses, now_s)
        supervisor = statuses.get("supervisor")
        known = supervisor.detail if supervisor is not None and ages_s["supervisor"] <= _STALE_S else {}
        order = ("inference", *WORKERS, "supervisor")
        for worker in sorted(statuses, key=lambda name: (order.index(name) if name in order else 9, name)):
            status = statuses[worker]
            known_state = known.get(f"{worker}.state")
            condition = {name: getattr(status, name) for name in _SAME}
            state: str = status.state
            if isinstance(known_state, str) and known_state not in ("running", "ended"):
                state = known_state
            elif ages_s[worker] > _STALE_S and state != "stopped":
                state = "silent"
                condition |= {"fps": 0.0, "lag_ms": None, "cpu_percent": None, "rss_mb": None}
            restarts = known.get(f"{worker}.restarts")
            yield ProcessCondition(
                **condition,
                state=state,
                restarts=restarts if isinstance(restarts, int) else None,
                source=_text(status.detail.get("source")),
                following=_text(status.detail.get("following")),
            )

    def _ages_s(self, statuses: dict[str, Status], now_s: float) -> dict[str, float]:
        """The age of each process's newest status.

        The last status of a process that is long gone arrives as if it were new, so times in statuses count too: on
        inference's clock, where it has measured that of a worker on another machine.
        """
        inference = statuses.get("inference")
        measured = inference.detail if inference is not None else {}
        times_ns = {}
        for worker, status in statuses.items():
            offset_ms = measured.get(f"{worker}.clock_offset_ms")
            times_ns[worker] = status.t_ns - round((offset_ms if isinstance(offset_ms, int | float) else 0) * NS_PER_MS)
        newest_ns = max(times_ns.values(), default=0)
        return {
            worker: max((newest_ns - t_ns) / NS_PER_S, now_s - self._reported.get(worker, (None, now_s))[1])
            for worker, t_ns in times_ns.items()
        }

    def _modalities(self) -> Iterable[ModalityCondition]:
        if self.newest is None:
            return
        for name, share in self.newest.gates.items():
            yield ModalityCondition(
                name=name, share=share, age_ms=self.newest.age_ms.get(name), masked=self.newest.absent.get(name)
            )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
