"""Summary figures of a run: rates, latency by stage, drops by cause, resources by process."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import Prediction, Status

STAGES = ("capture", "feature", "transport", "wait", "infer", "total", "deliver")
_RATIO = 1.01  # bucket width: percentiles are exact to 1 %, in bounded memory for any length of run
_SMALLEST_MS = 0.001


class Histogram:
    """Durations in milliseconds, in logarithmic buckets."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.max_ms = 0.0

    def add(self, ms: float) -> None:
        """Count one duration. Negative ones (clock skew between hosts) count as 0."""
        self._buckets[int(math.log(max(ms, _SMALLEST_MS) / _SMALLEST_MS) / math.log(_RATIO))] += 1
        self.count += 1
        self.max_ms = max(self.max_ms, ms)

    def percentile_ms(self, percent: float) -> float:
        """The duration that `percent` of all do not exceed; NaN if there are none."""
        rank = math.ceil(self.count * percent / 100)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(_SMALLEST_MS * math.pow(_RATIO, bucket + 0.5), self.max_ms)
        return math.nan

    def to_dict(self) -> dict[str, float]:
        """p50, p90, p99 and max in ms, and the count."""
        percentiles = {f"p{p}": self.percentile_ms(p) for p in (50, 90, 95, 99)} if self.count else {}
        return {"n": self.count, **{k: round(v, 3) for k, v in percentiles.items()}, "max": round(self.max_ms, 3)}


class Summary:
    """Collects a run's predictions and statuses.

    Args:
        warm_up: number of predictions to leave out of the latency figures: caches fill, the CPU clock rises.
    """

    def __init__(self, warm_up: int = 10) -> None:
        self.predictions = 0
        self.abstained = 0
        self.lost = 0
        self.stages = {stage: Histogram() for stage in STAGES}
        self.word_lag = Histogram()
        self.statuses: dict[str, Status] = {}
        self._drops: dict[tuple[str, int], dict[str, int]] = {}
        self._peak_mb: dict[str, float] = {}
        self._cpu: dict[str, list[float]] = {}
        self._warm_up = warm_up
        self._seen_words: set[tuple[str, int]] = set()
        self._first_ns: int | None = None
        self._last_ns = 0
        self._first_t_ns = 0
        self._last_t_ns = 0

    def add(self, prediction: Prediction, now_ns: int) -> None:
        """Count a prediction that a subscriber received at session time `now_ns`."""
        self.predictions += 1
        self.abstained += prediction.abstains is not None
        if self._first_ns is None:
            self._first_ns, self._first_t_ns = now_ns, prediction.t_end_ns
        self._last_ns, self._last_t_ns = now_ns, prediction.t_end_ns
        if self.predictions <= self._warm_up:
            return
        for stage, ms in prediction.latency.items():
            if stage in self.stages:
                self.stages[stage].add(ms)
        if "total" in prediction.latency and "capture" in prediction.latency:
            read_ns = prediction.t_end_ns + prediction.latency["capture"] * NS_PER_MS
            self.stages["deliver"].add((now_ns - read_ns) / NS_PER_MS - prediction.latency["total"])
            self._add_words(prediction, now_ns)

    def add_status(self, status: Status) -> None:
        if self.statuses.get(status.worker) is status:
            return
        self.statuses[status.worker] = status
        # Counters restart with each run of a process; the total is the sum over runs.
        self._drops[status.worker, status.run] = status.drops
        if status.rss_mb is not None:
            self._peak_mb[status.worker] = max(status.rss_mb, self._peak_mb.get(status.worker, 0.0))
        if status.cpu_percent is not None and status.state in ("running", "degraded"):
            cpu = self._cpu.setdefault(status.worker, [0.0, 0.0])
            cpu[0] += status.cpu_percent
            cpu[1] += 1

    @property
    def seconds(self) -> float:
        """From the first prediction to the last."""
        return 0.0 if self._first_ns is None else (self._last_ns - self._first_ns) / NS_PER_S

    @property
    def predictions_per_s(self) -> float:
        """Mean rate from the first prediction to the last."""
        return (self.predictions - 1) / self.seconds if self.seconds > 0 else 0.0

    def drops(self) -> dict[str, int]:
        """All drops, as "worker.cause"."""
        total: Counter[str] = Counter()
        for (worker, _), causes in self._drops.items():
            for cause, count in causes.items():
                total[f"{worker}.{cause}"] += count
        if self.lost:
            total["subscriber.lost"] = self.lost
        return {cause: count for cause, count in sorted(total.items()) if count}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON. Times in ms unless their name says otherwise."""
        text = self.statuses.get("text")
        return {
            "predictions": self.predictions,
            "abstained": self.abstained,
            "seconds": round(self.seconds, 3),
            "predictions_per_s": round(self.predictions_per_s, 2),
            "clip_seconds": round((self._last_t_ns - self._first_t_ns) / NS_PER_S, 3),
            "latency_ms": {stage: h.to_dict() for stage, h in self.stages.items() if h.count},
            "committed_word_lag_ms": self.word_lag.to_dict() if self.word_lag.count else None,
            "asr": dict(text.detail) | {"lag_ms": text.lag_ms} if text else None,
            "drops": self.drops(),
            "processes": {
                worker: {
                    "state": status.state,
                    "cpu_percent": round(total / n, 1) if (n := self._cpu.get(worker, [0, 0])[1]) else None,
                    "rss_mb": round(self._peak_mb.get(worker, 0.0), 1),
                    "fps": status.fps,
                    "last_error": status.last_error,
                    "detail": status.detail,
                }
                for worker, status in sorted(self.statuses.items())
                for total in [self._cpu.get(worker, [0.0, 0.0])[0]]
            },
        }

    def _add_words(self, prediction: Prediction, now_ns: int) -> None:
        """Latency from the end of a word's sound to its commit, as a subscriber sees it."""
        for word in prediction.words:
            key = (word.text, word.t_end_ns)
            if word.committed and key not in self._seen_words:
                self._seen_words.add(key)
                self.word_lag.add((now_ns - word.t_end_ns) / NS_PER_MS)
        if len(self._seen_words) > 4096:
            self._seen_words = {(w.text, w.t_end_ns) for w in prediction.words}
