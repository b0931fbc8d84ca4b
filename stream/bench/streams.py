"""Many streams served by one process: how many hold the limit, and what batches and memory do as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from mien.clock import NS_PER_MS, NS_PER_S
from mien.engines.predictor import Predictor
from mien.messages import Window
from mien.stream.bench.measurement import describe
from mien.stream.bench.synthetic import FRAME_HZ, SyntheticStream
from mien.stream.inference.assembler import Assembler

P99_LIMIT_MS = 33.0
WARM_UP_S = 1.0
_LEAD_NS = 6 * NS_PER_S  # a stream has been running for a whole window when the clock starts
_SLEEP_MARGIN_NS = NS_PER_MS // 2

Lane = tuple[SyntheticStream, Assembler]


def bench_multi(predictor: Predictor, streams: int, seconds: float = 5.0, *, batched: bool = True) -> dict[str, Any]:
    """`streams` streams of 30 frames a second each, served by this process alone.

    Streams that are due together share a batch, or with `batched` False are predicted one after the other. A frame that
    is overtaken by its stream's next one is dropped and counted. Latency is from the moment a frame is due to the
    moment its prediction is there.
    """
    clock = time.monotonic_ns
    process = psutil.Process()
    begin_ns = clock() + 200 * NS_PER_MS + streams * 40 * NS_PER_MS
    lanes = _lanes(predictor, streams, begin_ns)
    latencies: list[float] = []
    ages: dict[str, list[float]] = {name: [] for name in predictor.specs}
    batches: list[int] = []
    done_last: dict[str, int] = {}
    jitter: list[float] = []
    dropped, busy_ns = 0, 0
    process.cpu_percent()
    end_ns = begin_ns + int((WARM_UP_S + seconds) * NS_PER_S)
    while (now_ns := clock()) < end_ns:
        windows, due, overtaken = _due(lanes, now_ns)
        if not windows:
            wait_ns = min(stream.due_ns for stream, _ in lanes) - clock() - _SLEEP_MARGIN_NS
            if wait_ns > 0:
                time.sleep(wait_ns / NS_PER_S)
            continue
        began_ns = clock()
        done = []
        for group in [windows] if batched else [[window] for window in windows]:
            predictor.predict_many(group)
            done += [clock()] * len(group)
        if began_ns - begin_ns < WARM_UP_S * NS_PER_S:
            continue
        dropped += overtaken
        busy_ns += done[-1] - began_ns
        batches.append(len(windows))
        for window, due_ns, done_ns in zip(windows, due, done, strict=True):
            latencies.append((done_ns - due_ns) / NS_PER_MS)
            if window.session in done_last:
                jitter.append(abs(done_ns - done_last[window.session] - NS_PER_S / FRAME_HZ) / NS_PER_MS)
            done_last[window.session] = done_ns
            for name, age in window.age_ms.items():
                if age is not None:
                    ages[name].append(age)
    for stream, _ in lanes:
        predictor.forget(stream.session)
    figures = describe(latencies)
    offered = streams * FRAME_HZ
    return {
        "streams": streams,
        "batched": batched,
        "offered_fps": offered,
        "achieved_fps": round(len(latencies) / seconds, 1),
        "latency_ms": figures,
        "jitter_ms": describe(jitter),
        "age_ms": {name: describe(values) for name, values in ages.items()},
        "drops": {"overtaken": dropped},
        "mean_batch": round(float(np.mean(batches)), 2) if batches else 0.0,
        # What the process could serve if it were never idle: its time in the model alone.
        "capacity_fps": round(len(latencies) / busy_ns * NS_PER_S, 1) if busy_ns else 0.0,
        "cpu_percent": process.cpu_percent(),
        "rss_mb": round(process.memory_info().rss / 2**20, 1),
        "warm_up_s": WARM_UP_S,
        "holds": figures["n"] > 0.97 * offered * seconds and figures["p99"] <= P99_LIMIT_MS,
    }


def find_most_streams(
    predictor: Predictor, seconds: float = 5.0, most: int = 128, report: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """The largest number of streams that `bench_multi` finds to hold 33 ms at p99, by doubling, then halving steps.

    That number is then run once more without batches, beside a run with them. Memory by stream is the slope of a line
    through the trials.
    """
    trials: list[dict[str, Any]] = []

    def run(streams: int, batched: bool = True) -> dict[str, Any]:
        trial = bench_multi(predictor, streams, seconds, batched=batched)
        if report is not None:
            report(trial)
        return trial

    def holds(streams: int) -> bool:
        trials.append(run(streams))
        return bool(trials[-1]["holds"])

    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, high * 2
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    found: dict[str, Any] = {"model": predictor.id, "most_streams": low, "p99_limit_ms": P99_LIMIT_MS}
    if low > 1:
        kept = ("offered_fps", "achieved_fps", "capacity_fps", "mean_batch", "latency_ms", "drops")
        found["batching"] = {
            name: {key: value for key, value in run(low, batched).items() if key in kept}
            for name, batched in (("streams together", True), ("one by one", False))
        }
    # What was once asked of the system is not given back at once: only ever larger trials tell.
    growing = [trial for index, trial in enumerate(trials) if trial["streams"] > max(
        (other["streams"] for other in trials[:index]), default=0)]  # fmt: skip
    if len(growing) > 2:
        counts, memory = zip(*((trial["streams"], trial["rss_mb"]) for trial in growing), strict=True)
        slope, base = np.polyfit(counts, memory, 1)
        off = float(np.abs(np.polyval((slope, base), counts) - memory).max())
        found["memory_mb"] = {
            "by_stream": round(float(slope), 3),
            "base": round(float(base), 1),
            "furthest_from_the_line": round(off, 1),
        }
    trials.sort(key=lambda trial: int(trial["streams"]))
    return found | {"trials": trials}


def _lanes(predictor: Predictor, streams: int, begin_ns: int) -> list[Lane]:
    """Streams with a window full of rows, which do not all blink at the same moment."""
    period_ns = NS_PER_S // FRAME_HZ
    lanes = []
    for number in range(streams):
        start_ns = begin_ns - _LEAD_NS + number * period_ns // streams
        stream = SyntheticStream(f"stream-{number}", predictor.specs, number, start_ns)
        assembler = Assembler(predictor.specs)
        while stream.due_ns < begin_ns:
            for message in stream.next():
                assembler.push(message)
        lanes.append((stream, assembler))
    return lanes


def _due(lanes: list[Lane], now_ns: int) -> tuple[list[Window], list[int], int]:
    """The newest window of every stream that has a frame by now, when it was due, and how many were overtaken."""
    windows: list[Window] = []
    due: list[int] = []
    overtaken = 0
    for stream, assembler in lanes:
        newest = None
        while stream.due_ns <= now_ns:
            overtaken += newest is not None
            newest = stream.due_ns
            for message in stream.next():
                assembler.push(message)
        if newest is not None:
            windows.append(assembler.window(stream.session, newest))
            due.append(newest)
    return windows, due, overtaken
