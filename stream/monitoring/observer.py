"""A running session's health, seen from outside: for `mien status`, the health endpoint and the metrics.

It uses only what is published, so it also works from another machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from mien.clock import NS_PER_S
from mien.messages import WORKERS, Prediction
from mien.stream.bus.subscriber import Subscriber

SILENT_S = 3.0  # without a prediction: down
_STALE_NS = 4 * NS_PER_S  # a status this much older than the newest one is stale
_RATE_S = 2.0

_SAME = ("worker", "pid", "fps", "lag_ms", "cpu_percent", "rss_mb", "drops", "last_error")  # as in a status

Verdict = Literal["ok", "degraded", "down"]


class ProcessCondition(msgspec.Struct, frozen=True, kw_only=True):
    """One process. Fields as in `mien.Status`; `state` may also be "silent", "late", "down" or "crash loop".

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


class Observer(Subscriber):
    """A subscriber that keeps account of what it receives.

    Attributes:
        newest: the newest prediction.
    """

    def __init__(self, endpoint: str, *, session: str | None = None, keys: str | Path = "") -> None:
        super().__init__(endpoint, session=session, keys=keys)
        self.newest: Prediction | None = None
        self._began_s = time.monotonic()
        self._heard_s: float | None = None
        self._arrivals_s: deque[float] = deque(maxlen=1000)
        self._inference: tuple[int, int] | None = None

    def wait(self, timeout_s: float) -> list[Prediction]:
        predictions = super().wait(timeout_s)
        self._take_in(predictions)
        return predictions

    def condition(self) -> Condition:
        """The session's current condition."""
        now_s = time.monotonic()
        silent_s = None if self._heard_s is None else now_s - self._heard_s
        processes = tuple(self._processes())
        modalities = tuple(self._modalities())
        down = silent_s is None or silent_s > SILENT_S
        problems = [
            f"{process.worker}: {process.state}" + (f", {process.last_error}" if process.last_error else "")
            for process in processes
            if process.state not in ("running", "ready", "starting", "ended")
        ]
        # A modality that is not captured is missing on purpose.
        captured = {modality for worker, modality in WORKERS.items() if worker in self.statuses}
        problems += [
            f"{modality.name} is masked: {modality.masked}"
            for modality in modalities
            if modality.masked and modality.name in captured
        ]
        if down:
            problems.insert(0, "no predictions" + (f" for {silent_s:.1f} s" if silent_s else ""))
        newest = self.newest
        return Condition(
            verdict="down" if down else "degraded" if problems else "ok",
            problems=tuple(problems),
            session=newest.session if newest else next((s.session for s in self.statuses.values()), None),
            model=newest.model if newest else None,
            predictions_per_s=round(self._rate(now_s), 1),
            latency_ms=newest.latency.get("total") if newest else None,
            silent_s=silent_s,
            lost=self.lost,
            processes=processes,
            modalities=modalities,
        )

    def _take_in(self, predictions: Iterable[Prediction]) -> None:
        now_s = time.monotonic()
        for prediction in predictions:
            self.newest, self._heard_s = prediction, now_s
            self._arrivals_s.append(now_s)
        status = self.statuses.get("inference")
        if status is not None and (status.run, status.t_ns) != self._inference:
            self._inference = status.run, status.t_ns
            # Once it runs, only predictions prove that it works; they also come without any evidence.
            if status.state in ("starting", "ready", "ended"):
                self._heard_s = now_s

    def _rate(self, now_s: float) -> float:
        span_s = min(now_s - self._began_s, _RATE_S)
        return sum(at_s > now_s - span_s for at_s in self._arrivals_s) / max(span_s, 0.1)

    def _processes(self) -> Iterable[ProcessCondition]:
        newest_ns = max((status.t_ns for status in self.statuses.values()), default=0)
        supervisor = self.statuses.get("supervisor")
        known = supervisor.detail if supervisor is not None and newest_ns - supervisor.t_ns <= _STALE_NS else {}
        order = ("inference", *WORKERS, "supervisor")
        for worker in sorted(self.statuses, key=lambda name: (order.index(name) if name in order else 9, name)):
            status = self.statuses[worker]
            known_state = known.get(f"{worker}.state")
            state: str = status.state
            if isinstance(known_state, str) and known_state not in ("running", "ended"):
                state = known_state
            elif newest_ns - status.t_ns > _STALE_NS:
                state = "silent"
            restarts = known.get(f"{worker}.restarts")
            yield ProcessCondition(
                **{name: getattr(status, name) for name in _SAME},
                state=state,
                restarts=restarts if isinstance(restarts, int) else None,
                source=_text(status.detail.get("source")),
                following=_text(status.detail.get("following")),
            )

    def _modalities(self) -> Iterable[ModalityCondition]:
        if self.newest is None:
            return
        for name, share in self.newest.gates.items():
            yield ModalityCondition(
                name=name, share=share, age_ms=self.newest.age_ms.get(name), masked=self.newest.absent.get(name)
            )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
