"""Benchmarks of the parts that need no camera: engines, the bus, one stream, many streams.

Durations of engines are taken in one run, in turns and in random order. Latency of a stream that has a pace counts from
the moment a frame was due, not from when somebody found time for it, so that a stall is not hidden.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mien.clock import NS_PER_MS, NS_PER_S
from mien.config import BusConfig
from mien.engines.base import PRECISIONS, Array, Engine
from mien.engines.cache import Cache
from mien.engines.cmmsf import whole_network
from mien.engines.predictor import Outputs, Predictor
from mien.engines.selection import BACKENDS, find_backend, open_backend
from mien.errors import EngineError
from mien.messages import ModalitySpec, Prediction, Window
from mien.models.checkpoint import Checkpoint
from mien.stream.assembler import Assembler
from mien.stream.bench.measurement import Turns, describe, ratio
from mien.stream.bench.synthetic import FRAME_HZ, SyntheticStream, synthetic_windows
from mien.stream.bus import Publisher, Receiver
from mien.stream.wire import decode_features, decode_prediction, encode_features, encode_prediction, topic

WARM_UP = 20
BASELINE = "torch-fp32"
P99_LIMIT_MS = 33.0
_SLEEP_MARGIN_NS = NS_PER_MS // 2


def bench_engines(checkpoint: Checkpoint, seconds: float = 20.0, cache: Path | None = None) -> dict[str, Any]:
    """Every engine that can run here: the whole model, and rolling prediction with what did not change reused.

    Returns, besides "refused", per engine "whole" and "rolling" (see `describe`), and under "speedup" how many times
    as fast as the whole model in torch eager each of the two is.
    """
    whole: dict[str, Engine] = {}
    rolling: dict[str, Predictor] = {}
    refused: dict[str, str] = {}
    network = whole_network(checkpoint)
    for name in BACKENDS:
        backend = find_backend(name)
        missing = backend.missing()
        if missing:
            refused[name] = missing
            continue
        for precision in PRECISIONS:
            if precision not in backend.precisions:
                continue
            id = f"{name}-{precision}"
            try:
                whole[id] = open_backend(network, backend, precision, 1, Cache(cache))
                predictor = Predictor(checkpoint, name, precision, cache=cache)
            except EngineError as error:
                refused[id] = str(error)
                whole.pop(id, None)
                continue
            if predictor.id.endswith(f"/{id}"):
                rolling[id] = predictor
            else:
                refused[f"{id} rolling"] = predictor.reason
    windows = synthetic_windows({spec.name: spec for spec in checkpoint.specs}, 3 * FRAME_HZ)
    inputs = [_whole_inputs(window) for window in windows]
    turns = Turns([*(f"whole {id}" for id in whole), *(f"rolling {id}" for id in rolling)])
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < 2 * WARM_UP or time.perf_counter() < until:
        # Each predictor sees every window in order: what it may reuse is what a stream lets it reuse.
        for contestant in turns.order():
            kind, id = contestant.split(" ", 1)
            started = time.perf_counter()
            if kind == "whole":
                whole[id].infer(inputs[rounds % len(inputs)])
            else:
                rolling[id].predict(windows[rounds % len(windows)])
            turns.add(contestant, started)
        rounds += 1
    figures = {name: describe(values[WARM_UP:]) for name, values in turns.durations_ms.items()}
    base = figures[f"whole {BASELINE}"]["blocks"]
    speedup = {name: ratio(values["blocks"], base) for name, values in figures.items()}
    return {"engines": figures, "speedup over whole torch-fp32": speedup, "refused": refused}


def bench_single(predictor: Predictor, seconds: float = 10.0) -> dict[str, Any]:
    """One stream as fast as possible, every stage but capture and sockets: messages in, a message out."""
    stages: dict[str, list[float]] = {name: [] for name in ("decode", "assemble", "infer", "publish", "total")}
    stream, assembler = SyntheticStream("bench", predictor.specs), Assembler(predictor.specs)
    started = time.perf_counter()
    count = 0
    while count < 2 * WARM_UP or time.perf_counter() - started < seconds:
        t_ns = stream.due_ns
        packed = [encode_features(message) for message in stream.next()]
        marks = [time.perf_counter()]
        messages = [decode_features(frames) for frames in packed]
        marks.append(time.perf_counter())
        for message in messages:
            assembler.push(message)
        window = assembler.window("bench", t_ns)
        marks.append(time.perf_counter())
        outputs = predictor.predict(window)
        marks.append(time.perf_counter())
        encode_prediction(_prediction(window, outputs, count))
        marks.append(time.perf_counter())
        for name, begin, end in zip(stages, marks, marks[1:], strict=False):
            stages[name].append((end - begin) * 1e3)
        stages["total"].append((marks[-1] - marks[0]) * 1e3)
        count += 1
    figures = {name: describe(values[WARM_UP:]) for name, values in stages.items()}
    busy_s = sum(stages["total"][WARM_UP:]) / 1e3
    return {"model": predictor.id, "predictions_per_s": round((count - WARM_UP) / busy_s, 1), "stages_ms": figures}


def bench_bus(seconds: float = 5.0, dim: int = 119) -> dict[str, Any]:
    """The bus alone: a features and a prediction message through TCP on this machine, one at a time, then in bursts."""
    stream = SyntheticStream("bench", {"vision": ModalitySpec("vision", dim, 10, 50)})
    (message,) = stream.next()
    prediction = _prediction_of_nothing()
    config = BusConfig(port=free_port())
    publisher = Publisher(config.endpoint(), config)
    receiver = Receiver(config.endpoint(), (topic("features", "bench"), topic("prediction", "bench")))
    try:
        while not publisher.has_subscriber(topic("prediction", "bench")):
            time.sleep(0.001)
        features = _round_trips(publisher, receiver, seconds / 3, lambda: encode_features(message), decode_features)
        predictions = _round_trips(
            publisher, receiver, seconds / 3, lambda: encode_prediction(prediction), decode_prediction
        )
        sent, received = _burst(publisher, receiver, seconds / 3, encode_features(message))
    finally:
        receiver.close()
        publisher.close()
    return {
        "features_ms": describe(features[WARM_UP:]),
        "prediction_ms": describe(predictions[WARM_UP:]),
        "messages_per_s": round(received / (seconds / 3)),
        "sent": sent,
        "received": received,
    }


def bench_multi(predictor: Predictor, streams: int, seconds: float = 5.0) -> dict[str, Any]:
    """`streams` streams of 30 frames a second each, served by this process alone.

    Streams that are due together share a batch. A frame that is overtaken by its stream's next one is dropped and
    counted. Latency is from the moment a frame is due to the moment its prediction is there.
    """
    clock = time.monotonic_ns
    # They have been running for a whole window when the clock starts, and do not all blink at the same moment.
    lead_ns = 6 * NS_PER_S
    begin_ns = clock() + 200 * NS_PER_MS + streams * 40 * NS_PER_MS
    period_ns = NS_PER_S // FRAME_HZ
    lanes = []
    for number in range(streams):
        start_ns = begin_ns - lead_ns + number * period_ns // streams
        stream = SyntheticStream(f"stream-{number}", predictor.specs, number, start_ns)
        lane = (stream, Assembler(predictor.specs))
        while stream.due_ns < begin_ns:
            for message in stream.next():
                lane[1].push(message)
        lanes.append(lane)
    latencies: list[float] = []
    batches: list[int] = []
    dropped = 0
    process = psutil.Process()
    process.cpu_percent()
    end_ns = begin_ns + int((seconds + 1.0) * NS_PER_S)
    while (now_ns := clock()) < end_ns:
        windows: list[Window] = []
        due: list[int] = []
        for stream, assembler in lanes:
            newest = None
            while stream.due_ns <= now_ns:
                dropped += newest is not None
                newest = stream.due_ns
                for message in stream.next():
                    assembler.push(message)
            if newest is not None:
                windows.append(assembler.window(stream.session, newest))
                due.append(newest)
        if not windows:
            wait_ns = min(stream.due_ns for stream, _ in lanes) - clock() - _SLEEP_MARGIN_NS
            if wait_ns > 0:
                time.sleep(wait_ns / NS_PER_S)
            continue
        for number in range(0, len(windows), 32):
            predictor.predict_many(windows[number : number + 32])
        done_ns = clock()
        if done_ns - begin_ns > NS_PER_S:  # the first second warms up
            latencies += [(done_ns - t_ns) / NS_PER_MS for t_ns in due]
            batches.append(len(windows))
    for stream, _ in lanes:
        predictor.forget(stream.session)
    figures = describe(latencies)
    offered = streams * FRAME_HZ
    return {
        "streams": streams,
        "offered_per_s": offered,
        "achieved_per_s": round(len(latencies) / seconds, 1),
        "latency_ms": figures,
        "dropped": dropped,
        "mean_batch": round(float(np.mean(batches)), 2) if batches else 0.0,
        "cpu_percent": process.cpu_percent(),
        "rss_mb": round(process.memory_info().rss / 2**20, 1),
        "holds": figures["n"] > 0.97 * offered * seconds and figures["p99"] <= P99_LIMIT_MS,
    }


def find_most_streams(
    predictor: Predictor, seconds: float = 5.0, most: int = 128, report: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """The largest number of streams that `bench_multi` finds to hold 33 ms at p99, by doubling, then halving steps."""
    trials: list[dict[str, Any]] = []

    def holds(streams: int) -> bool:
        trials.append(bench_multi(predictor, streams, seconds))
        if report is not None:
            report(trials[-1])
        return bool(trials[-1]["holds"])

    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, high * 2
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    trials.sort(key=lambda trial: int(trial["streams"]))
    return {"model": predictor.id, "most_streams": low, "p99_limit_ms": P99_LIMIT_MS, "trials": trials}


def free_port() -> int:
    """A TCP port on loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _whole_inputs(window: Window) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    for name, features in window.features.items():
        inputs |= {f"{name}.features": features[None], f"{name}.mask": window.mask[name][None]}
    return inputs


def _prediction(window: Window, outputs: Outputs, seq: int) -> Prediction:
    return Prediction(
        session=window.session,
        run=1,
        seq=seq,
        t_end_ns=window.t_end_ns,
        sentiment=outputs.sentiment,
        sentiment_smooth=outputs.sentiment,
        emotions=outputs.emotions,
        confidence=outputs.confidence,
        gates=outputs.gates,
        age_ms=window.age_ms,
        latency={"infer": outputs.infer_ms},
        model=outputs.model,
    )


def _prediction_of_nothing() -> Prediction:
    return Prediction(
        session="bench",
        run=1,
        seq=0,
        t_end_ns=0,
        sentiment=None,
        sentiment_smooth=None,
        emotions=None,
        confidence=None,
        gates={},
        age_ms={},
        abstains="this is a benchmark",
    )


def _round_trips(
    publisher: Publisher,
    receiver: Receiver,
    seconds: float,
    encode: Callable[[], list[bytes]],
    decode: Callable[[list[bytes]], object],
) -> list[float]:
    """Durations in ms from before encoding to after decoding."""
    durations: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(durations) <= WARM_UP:
        started = time.perf_counter()
        publisher.send(encode(), keep=False)
        decode(receiver.socket.recv_multipart())
        durations.append((time.perf_counter() - started) * 1e3)
    return durations


def _burst(publisher: Publisher, receiver: Receiver, seconds: float, frames: list[bytes]) -> tuple[int, int]:
    """As many as go: sent and received."""
    sent = received = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(32):
            publisher.send(frames, keep=False)
        sent += 32
        received += sum(1 for _ in receiver.drain())
    while receiver.socket.poll(50):
        received += sum(1 for _ in receiver.drain())
    return sent, received
