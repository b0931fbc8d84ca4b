"""Many streams: how many stay within the limit, their cost by step, and how batches and memory scale."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil

from mien.clock import NS_PER_MS, NS_PER_S
from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.engines.snapshots import NEVER
from mien.stream.bench.measurement import describe
from mien.stream.bench.synthetic import FRAME_HZ, SyntheticStream
from mien.stream.inference.assembler import Assembler

P99_LIMIT_MS = 33.0
WARM_UP_S = 1.0
_LEAD_NS = 6 * NS_PER_S  # streams have run for a whole window when the measurement starts
_SLEEP_MARGIN_NS = NS_PER_MS // 2
_WARM_UP = 12

Trial = dict[str, Any]


Lane = tuple[SyntheticStream, Assembler]  # a stream, and what its windows are made from


def bench_multi(predictor: Predictor, streams: int, seconds: float = 5.0, *, batched: bool = True) -> Trial:
    """`streams` streams of 30 frames a second each in this process, without sockets.

    Streams due at the same time share a batch, or with `batched` False are predicted one by one. A frame overtaken by
    its stream's next one is dropped and counted. Latency is from when a frame is due until its prediction is ready.
    """
    clock = time.monotonic_ns
    process = psutil.Process()
    begin_ns = clock() + 200 * NS_PER_MS + streams * 40 * NS_PER_MS
    windows, lanes = make_lanes(predictor, streams, begin_ns)
    latencies: list[float] = []
    ages: dict[str, list[float]] = {name: [] for name in predictor.specs}
    batches: list[int] = []
    done_last: dict[int, int] = {}
    jitter: list[float] = []
    dropped, busy_ns = 0, 0
    process.cpu_percent()
    end_ns = begin_ns + int((WARM_UP_S + seconds) * NS_PER_S)
    while (now_ns := clock()) < end_ns:
        due, overtaken = _due(lanes, now_ns)
        if not due:
            wait_ns = min(stream.due_ns for stream, _ in lanes) - clock() - _SLEEP_MARGIN_NS
            if wait_ns > 0:
                time.sleep(wait_ns / NS_PER_S)
            continue
        began_ns = clock()
        done: list[int] = []
        newest = np.empty((0, len(predictor.specs)), np.int64)
        for group in [due] if batched else [[one] for one in due]:
            look = windows.look([place for place, _ in group], [t_ns for _, t_ns in group])
            predictor.predict_look(windows, look)
            newest = np.concatenate([newest, np.where(look.present, look.newest_ns, NEVER)])
            done += [clock()] * len(group)
        if began_ns - begin_ns < WARM_UP_S * NS_PER_S:
            continue
        dropped += overtaken
        busy_ns += done[-1] - began_ns
        batches.append(len(due))
        for (place, due_ns), done_ns, row in zip(due, done, newest.tolist(), strict=True):
            latencies.append((done_ns - due_ns) / NS_PER_MS)
            if place in done_last:
                jitter.append(abs(done_ns - done_last[place] - NS_PER_S / FRAME_HZ) / NS_PER_MS)
            done_last[place] = done_ns
            for name, newest_ns in zip(ages, row, strict=True):
                if newest_ns != NEVER:
                    ages[name].append((due_ns - newest_ns) / NS_PER_MS)
    return {
        **stream_figures(streams, seconds, latencies, jitter, ages),
        "batched": batched,
        "drops": {"overtaken": dropped},
        "mean_batch": round(float(np.mean(batches)), 2) if batches else 0.0,
        # Throughput if the process were never idle, by the time in the model alone.
        "capacity_fps": round(len(latencies) / busy_ns * NS_PER_S, 1) if busy_ns else 0.0,
        "cpu_percent": process.cpu_percent(),
        "rss_mb": round(process.memory_info().rss / 2**20, 1),
        "warm_up_s": WARM_UP_S,
    }


def stream_figures(
    streams: int,
    seconds: float,
    latencies: list[float],
    jitter: list[float],
    ages: dict[str, list[float]],
    measured: int = 0,
) -> dict[str, Any]:
    """Rates, latencies, jitter and ages (ms) of a trial, and whether it stays within the limit.

    It does if nearly all frames were predicted, 99 in a hundred of them in time. `measured`: of how many streams the
    latencies are; of all by default.
    """
    latency, offered = describe(latencies), streams * FRAME_HZ
    achieved_fps = len(latencies) * streams / (measured or streams) / seconds
    return {
        "streams": streams,
        "offered_fps": offered,
        "achieved_fps": round(achieved_fps, 1),
        "latency_ms": latency,
        "jitter_ms": describe(jitter),
        "age_ms": {name: describe(values) for name, values in ages.items()},
        "holds": achieved_fps > 0.97 * offered and latency["p99"] <= P99_LIMIT_MS,
    }


def measure_batches(predictor: Predictor, sizes: Sequence[int], rounds: int = 60) -> dict[str, Any]:
    """Cost of a batch of rolling windows by its size: ms per batch, and microseconds per window by step."""
    table = {}
    for size in sizes:
        windows, lanes = make_lanes(predictor, size, _LEAD_NS)
        spent: dict[str, list[float]] = {step: [] for step in ("push", "look", "model")}
        for number in range(_WARM_UP + rounds):
            marks = [time.perf_counter_ns()]
            due = [(assembler.place, stream.feed(assembler)) for stream, assembler in lanes]
            marks.append(time.perf_counter_ns())
            look = windows.look([place for place, _ in due], [t_ns for _, t_ns in due])
            marks.append(time.perf_counter_ns())
            predictor.predict_look(windows, look)
            marks.append(time.perf_counter_ns())
            if number >= _WARM_UP:
                for step, begin, end in zip(spent, marks, marks[1:], strict=False):
                    spent[step].append((end - begin) / NS_PER_MS)
        median_ms = float(np.median(spent["model"]))
        table[f"batch of {size}"] = {
            "model_ms": describe(spent["model"]),
            "windows_per_s": round(size / median_ms * 1e3),
            "steps_us": {step: round(float(np.mean(values)) / size * 1e3, 1) for step, values in spent.items()},
        }
    return {"model": predictor.id, "batches": table}


def compare_batching(predictor: Predictor, streams: int, seconds: float) -> dict[str, Any]:
    """This many streams, batched and one by one."""
    kept = ("offered_fps", "achieved_fps", "capacity_fps", "mean_batch", "latency_ms", "drops")
    return {
        name: {k: v for k, v in bench_multi(predictor, streams, seconds, batched=batched).items() if k in kept}
        for name, batched in (("streams together", True), ("one by one", False))
    }


def find_most_streams(
    run: Callable[[int], Trial], most: int = 128, report: Callable[[Trial], None] | None = None
) -> dict[str, Any]:
    """The largest number of streams with which a trial, or its repetition, stays within 33 ms at p99.

    Found by doubling, then by bisection. Memory per stream is the slope of a line through the trials.
    """
    trials: list[Trial] = []

    def holds(streams: int) -> bool:
        for _ in range(2):  # a momentary load on the machine should not decide
            trials.append(run(streams))
            if report is not None:
                report(trials[-1])
            if trials[-1]["holds"]:
                return True
        return False

    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, high * 2
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    found: dict[str, Any] = {"most_streams": low, "p99_limit_ms": P99_LIMIT_MS}
    # Freed memory is not returned to the system at once: only trials larger than all before count.
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


def make_lanes(predictor: Predictor, streams: int, begin_ns: int) -> tuple[Windows, list[Lane]]:
    """Streams with full windows, their frames staggered over a frame interval."""
    period_ns = NS_PER_S // FRAME_HZ
    windows, lanes = Windows(predictor.specs, streams), []
    for number in range(streams):
        start_ns = begin_ns - _LEAD_NS + number * period_ns // streams
        stream = SyntheticStream(f"stream-{number}", predictor.specs, number, start_ns)
        lanes.append((stream, Assembler(predictor.specs, windows=windows)))
        while stream.due_ns < begin_ns:
            stream.feed(lanes[-1][1])
    return windows, lanes


def _due(lanes: Sequence[Lane], now_ns: int) -> tuple[list[tuple[int, int]], int]:
    """Place and time of the newest frame of every stream that has one, and how many were overtaken."""
    due: list[tuple[int, int]] = []
    overtaken = 0
    for stream, assembler in lanes:
        newest = None
        while stream.due_ns <= now_ns:
            overtaken += newest is not None
            newest = stream.feed(assembler)
        if newest is not None:
            due.append((assembler.place, newest))
    return due, overtaken
