"""Gaps in the predictions of a session under faults, and whether a status explained each of them."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from mien.messages import WORKERS, Prediction, Status

SILENCE_S = 0.5  # without a prediction: a gap that must be explained
_BEHIND_MS = 2500.0  # a worker whose rows are so late says so by its lag
_OLD_ENOUGH_S = 20.0  # a process whose memory is compared has loaded everything
_KEPT = 1000


class GapLog:
    """Remembers predictions with when they came, and what statuses said.

    Args:
        workers: capture workers of the session; the masks of others are on purpose.

    Attributes:
        arrivals: (when, prediction), the newest thousand. count: all there were.
        memory: per process, (when, MB) of its mature runs.
    """

    def __init__(self, workers: Collection[str]) -> None:
        self.arrivals: list[tuple[float, Prediction]] = []
        self.count = 0
        self.memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._workers = workers
        self._said: list[tuple[float, str]] = []
        self._newest: dict[str, Status] = {}
        self._since_s: dict[tuple[str, int], float] = {}

    def add_prediction(self, prediction: Prediction) -> None:
        """A prediction came now."""
        self.arrivals.append((time.monotonic(), prediction))
        self.count += 1

    def add_statuses(self, statuses: Mapping[str, Status]) -> None:
        """The newest status of each process."""
        now_s = time.monotonic()
        for worker, status in statuses.items():
            before = self._newest.get(worker)
            if status is before:
                continue
            self._newest[worker] = status
            # An error stays in the status when it is over; only a new one, or a state, explains what happens now.
            news = status.last_error is not None and (before is None or status.last_error != before.last_error)
            behind = status.lag_ms is not None and status.lag_ms > _BEHIND_MS
            if news or behind or status.state in ("degraded", "failed", "starting"):
                self._said.append((now_s, worker))
            # Inference says which modalities are missing as a whole, and why.
            self._said += [(now_s, each) for each in WORKERS if f"absent.{WORKERS[each]}" in status.detail]
            if status.rss_mb is None or not status.run:
                continue
            if now_s - self._since_s.setdefault((worker, status.run), now_s) >= _OLD_ENOUGH_S:
                self.memory[worker].append((now_s, status.rss_mb))

    def forget(self) -> None:
        """Keep what is needed for the present."""
        del self._said[:-_KEPT]
        del self.arrivals[:-_KEPT]

    def silences(self, since_s: float) -> list[tuple[float, float]]:
        """Times between two predictions, from `since_s` on: begin and end."""
        times_s = [since_s, *(at_s for at_s, _ in self.arrivals if at_s >= since_s)]
        return list(itertools.pairwise(times_s))

    def unexplained(self, since_s: float) -> list[str]:
        """Silences and masks since then of which no status told why."""
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
        """Per process, its last fifth of memory over its first, less 1; None where there is too little to compare."""
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
        """Whether a status said, when it could be heard, that something was amiss then."""
        return any(
            begin_s - 1.0 <= at_s <= end_s + 5.0 and (said in ("supervisor", worker) or worker is None)
            for at_s, said in self._said
        )
