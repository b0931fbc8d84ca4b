"""Benchmarks without camera or pacing: one stream at full speed, and the bus alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mien.config import BusConfig, Config
from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.messages import WORKERS, ModalitySpec
from mien.stream.bench.measurement import describe
from mien.stream.bench.synthetic import SyntheticStream, synthetic_prediction
from mien.stream.bus.ports import free_port
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import decode_features, decode_prediction, encode_features, encode_prediction, topic
from mien.stream.inference.prediction import Live, Trigger

WARM_UP = 20


def bench_single(predictor: Predictor, seconds: float = 10.0) -> dict[str, Any]:
    """One stream as fast as possible, every stage but capture and sockets: messages in, a message out."""
    stages: dict[str, list[float]] = {name: [] for name in ("decode", "assemble", "infer", "publish", "total")}
    windows = Windows(predictor.specs)
    stream, config = SyntheticStream("bench", predictor.specs), Config(session="bench")
    mode = Live(config, tuple(WORKERS), {}, predictor.specs, windows, 1)
    started = time.perf_counter()
    count = 0
    while count < 2 * WARM_UP or time.perf_counter() - started < seconds:
        t_ns = stream.due_ns
        packed = [encode_features(message) for message in stream.next()]
        marks = [time.perf_counter()]
        messages = [decode_features(frames) for frames in packed]
        marks.append(time.perf_counter())
        for message in messages:
            mode.push(message, None)
        look = windows.look([mode.place], [t_ns])
        marks.append(time.perf_counter())
        (answer,) = predictor.predict_look(windows, look).rows()
        marks.append(time.perf_counter())
        (seen,) = look.seen()
        trigger = Trigger(t_ns)
        encode_prediction(mode.predicted(trigger, mode.evidence(trigger, seen), answer, predictor.id, (0, 0)))
        marks.append(time.perf_counter())
        for name, begin, end in zip(stages, marks, marks[1:], strict=False):
            stages[name].append((end - begin) * 1e3)
        stages["total"].append((marks[-1] - marks[0]) * 1e3)
        count += 1
    figures = {name: describe(values[WARM_UP:]) for name, values in stages.items()}
    busy_s = sum(stages["total"][WARM_UP:]) / 1e3
    return {
        "model": predictor.id,
        "offered_fps": "as fast as possible",
        "achieved_fps": round((count - WARM_UP) / busy_s, 1),
        "warm_up": WARM_UP,
        "stages_ms": figures,
    }


def bench_bus(seconds: float = 5.0) -> dict[str, Any]:
    """The bus alone: a features and a prediction message over local TCP, one at a time, then in bursts."""
    stream = SyntheticStream("bench", {"vision": ModalitySpec("vision", 119, 10, 50)})
    (message,) = stream.next()
    prediction = synthetic_prediction("bench", 0, 0)
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
        "warm_up": WARM_UP,
        "features_ms": describe(features[WARM_UP:]),
        "prediction_ms": describe(predictions[WARM_UP:]),
        "messages_per_s": round(received / (seconds / 3)),
        "sent": sent,
        "received": received,
        "drops": {"beyond the high-water mark": sent - received},
    }


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
    """As many as possible: sent and received."""
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
