"""A whole session at a camera's pace, measured from outside: all its processes, the bus, and a subscriber."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import Prediction, Status
from mien.stream.bench.measurement import describe
from mien.stream.bus.subscriber import Subscriber
from mien.stream.processes.child import PROGRAM
from mien.stream.processes.plan import Session
from mien.stream.processes.supervisor import Supervisor

WARM_UP_S = 2.0
SOAK_SETTLE_S = 120.0
_SUBSCRIBED_S = 5.0
STAGES = ("capture", "feature", "transport", "wait", "infer", "software", "publish", "end_to_end")  # in their order


class Recording:
    """What a subscriber receives from a session."""

    def __init__(self) -> None:
        self.received: list[tuple[int, Prediction]] = []  # session time of arrival, and what arrived
        self.model = ""
        self.memory_mb: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.cpu_percent: dict[str, list[float]] = defaultdict(list)
        self.asr_lag_ms: list[float] = []
        self.statuses: dict[str, Status] = {}
        self.drops_before: dict[str, dict[str, int]] = {}
        self.lost = 0

    def add_status(self, status: Status, at_s: float, warming_up: bool) -> None:
        """Add a status at `at_s` seconds since the start."""
        if self.statuses.get(status.worker) is status:
            return
        self.statuses[status.worker] = status
        if warming_up:
            self.drops_before[status.worker] = status.drops
            return
        if status.rss_mb is not None:
            self.memory_mb[status.worker].append((at_s, status.rss_mb))
        if status.cpu_percent is not None and status.state in ("running", "degraded"):
            self.cpu_percent[status.worker].append(status.cpu_percent)
        if status.worker == "text" and status.lag_ms is not None:
            self.asr_lag_ms.append(status.lag_ms)


@contextmanager
def running(
    session: Session, stopping: threading.Event, program: Sequence[str] = PROGRAM
) -> Iterator[tuple[Supervisor, Subscriber] | None]:
    """A session that is ready to be started, and a subscriber to it; None if told to stop before. Ends with the block.

    Raises:
        MienError: a process could not start.
    """
    supervisor = Supervisor(session, program=program)
    try:
        supervisor.launch()
        if supervisor.wait_ready(stopping):
            with Subscriber(session.config.bus.address(), session=session.config.session) as subscriber:
                yield supervisor, subscriber
        else:
            yield None
    finally:
        supervisor.stop()


def record(session: Session, seconds: float, stopping: threading.Event) -> Recording:
    """Run a session for `seconds` after its warm-up, or to the end of its clip.

    Returns what was received, without the warm-up.

    Raises:
        MienError: a process could not start, or died.
    """
    recording = Recording()
    with running(session, stopping) as live:
        if live is None:
            return recording
        supervisor, subscriber = live
        recording.model = supervisor.model
        deadline_s = time.monotonic() + _SUBSCRIBED_S
        while "inference" not in subscriber.statuses and time.monotonic() < deadline_s:
            subscriber.wait(0.02)
        supervisor.start()
        began_s = time.monotonic()
        lost_before = 0
        while not stopping.is_set() and time.monotonic() - began_s < WARM_UP_S + seconds:
            supervisor.tend()
            predictions = subscriber.wait(0.05)
            now_ns, at_s = supervisor.clock.now_ns(), time.monotonic() - began_s
            warming_up = at_s < WARM_UP_S
            if warming_up:
                lost_before = subscriber.lost
            else:
                recording.received += [(now_ns, prediction) for prediction in predictions]
            for status in list(subscriber.statuses.values()):
                recording.add_status(status, at_s, warming_up)
            recording.lost = subscriber.lost - lost_before
            if supervisor.ended and not predictions:
                break
    return recording


def summarise(recording: Recording, offered_fps: float | None = None) -> dict[str, Any]:
    """Rates, latencies by stage, ages, jitter, drops by cause, speech recognition, and resources of a recording.

    "software" is from reading the frame to publishing its prediction; "publish" from there to its arrival at the
    subscriber. "end_to_end" is from when the frame was due (clip) or captured (device) to that arrival.
    """
    stages: dict[str, list[float]] = defaultdict(list)
    ages: dict[str, list[float]] = defaultdict(list)
    for now_ns, prediction in recording.received:
        for stage, ms in prediction.latency.items():
            stages["software" if stage == "total" else stage].append(ms)
        if "total" in prediction.latency:
            whole_ms = (now_ns - prediction.t_end_ns) / NS_PER_MS
            stages["publish"].append(whole_ms - prediction.latency["capture"] - prediction.latency["total"])
            stages["end_to_end"].append(whole_ms)
        for modality, age in prediction.age_ms.items():
            if age is not None:
                ages[modality].append(age)
    received_ns = [now_ns for now_ns, _ in recording.received]
    seconds = (received_ns[-1] - received_ns[0]) / NS_PER_S if len(received_ns) > 1 else 0.0
    intervals_ms = np.diff(received_ns) / NS_PER_MS
    return {
        "offered_fps": offered_fps,
        "achieved_fps": round((len(received_ns) - 1) / seconds, 2) if seconds else 0.0,
        "seconds": round(seconds, 2),
        "warm_up_s": WARM_UP_S,
        "stages_ms": {stage: describe(stages[stage]) for stage in STAGES if stage in stages},
        "age_ms": {modality: describe(values) for modality, values in ages.items()},
        "jitter_ms": describe(np.abs(intervals_ms - np.median(intervals_ms)).tolist()) if seconds else describe([]),
        "drops": _drops(recording),
        "asr": _asr(recording),
        "processes": {
            worker: {
                "cpu_percent": round(float(np.mean(recording.cpu_percent[worker])), 1),
                "rss_mb": round(max(mb for _, mb in memory), 1),
            }
            for worker, memory in sorted(recording.memory_mb.items())
            if recording.cpu_percent.get(worker)
        },
    }


def slopes(recording: Recording, seconds: float) -> dict[str, Any]:
    """Growth per minute once a run of `seconds` has settled: memory of every process in MiB, latency in ms.

    It has settled after two minutes, or after two fifths of a shorter run. "minutes" is the latency of each minute.
    """
    settle_s = min(SOAK_SETTLE_S, 0.4 * seconds)
    growth: dict[str, Any] = {"settled_after_s": round(settle_s, 1), "memory_mb_per_min": {}}
    for worker, series in recording.memory_mb.items():
        settled = [(at_s, mb) for at_s, mb in series if at_s >= settle_s]
        growth["memory_mb_per_min"][worker] = _slope_per_min(settled)
    points = timeline(recording)
    growth["software_ms_per_min"] = _slope_per_min([point for point in points if point[0] >= settle_s])
    minutes: dict[int, list[float]] = defaultdict(list)
    for at_s, ms in points:
        minutes[int(at_s // 60)].append(ms)
    growth["minutes"] = [
        {"minute": minute, "n": len(values), **{f"p{p}": round(float(np.percentile(values, p)), 2) for p in (50, 99)}}
        for minute, values in sorted(minutes.items())
    ]
    return growth


def timeline(recording: Recording) -> list[tuple[float, float]]:
    """Seconds since the first prediction, and software latency in ms, of each prediction."""
    return [
        ((now_ns - recording.received[0][0]) / NS_PER_S, prediction.latency["total"])
        for now_ns, prediction in recording.received
        if "total" in prediction.latency
    ]


def _asr(recording: Recording) -> dict[str, Any] | None:
    """The recogniser's real-time factor, its lag behind the sound, and the delay until words are committed."""
    text = recording.statuses.get("text")
    if text is None:
        return None
    lags: list[float] = []
    # Words in the first prediction were committed before the measurement.
    seen = {(word.text, word.t_end_ns) for _, first in recording.received[:1] for word in first.words}
    for now_ns, prediction in recording.received:
        for word in prediction.words:
            if word.committed and (word.text, word.t_end_ns) not in seen:
                seen.add((word.text, word.t_end_ns))
                lags.append((now_ns - word.t_end_ns) / NS_PER_MS)
    detail = {key: value for key, value in text.detail.items() if key not in ("source", "lag_ms")}
    return detail | {"lag_ms": describe(recording.asr_lag_ms), "committed_word_lag_ms": describe(lags)}


def _drops(recording: Recording) -> dict[str, int]:
    drops = {}
    for worker, status in recording.statuses.items():
        before = recording.drops_before.get(worker, {})
        for cause, count in status.drops.items():
            if count > before.get(cause, 0):
                drops[f"{worker}.{cause}"] = count - before.get(cause, 0)
    if recording.lost:
        drops["subscriber.lost"] = recording.lost
    return drops


def _slope_per_min(series: list[tuple[float, float]]) -> float | None:
    """Least squares; None if there is too little to fit."""
    if len(series) < 10:
        return None
    at_s, values = np.array(series).T
    return round(float(np.polyfit(at_s, values, 1)[0]) * 60, 4)
