"""A real inference process under load: features many times too fast, many subscribers, slow subscribers.

Only the features are synthetic; they arrive over real sockets as from workers. Their stamps are their due times, so
the predictions' latency counts from there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np
import zmq

from mien.clock import NS_PER_S, Clock
from mien.closing import Closing
from mien.config import BusConfig, Config, InferenceConfig, load_config
from mien.errors import WorkerError
from mien.messages import WORKERS, FeatureWindow, ModalitySpec
from mien.models.checkpoint import load_checkpoint
from mien.stream.bench.measurement import describe
from mien.stream.bench.synthetic import FRAME_HZ, SyntheticStream
from mien.stream.bus.ports import free_ports
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.subscriber import Subscriber
from mien.stream.bus.wire import decode_prediction, encode_features, topic
from mien.stream.processes.child import Child, Event
from mien.stream.processes.control import Assignment

_READY_S = 180.0
_SETTLE_S = 3.0
_FAST, _SLOW = 100, 20  # subscribers
_SLOW_S = 0.5  # a slow subscriber's time per message
SESSION = "load"


class InferenceUnderLoad(Closing):
    """An inference process, and publishers in place of its three workers."""

    def __init__(self, engine: str, checkpoint: str) -> None:
        self.config: Config = msgspec.structs.replace(
            load_config(overrides={"session": SESSION}),
            bus=BusConfig(port=free_ports()),
            inference=InferenceConfig(engine=engine, checkpoint=checkpoint),
        )
        self.clock = Clock()
        self.specs = {spec.name: spec for spec in load_checkpoint(checkpoint).specs}
        self.sent: Counter[str] = Counter()
        self._publishers = {
            modality: Publisher(self.config.bus.endpoint(worker), self.config.bus)
            for worker, modality in WORKERS.items()
        }
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._child = Child("inference", Assignment(self.config, self.clock.anchor_ns, tuple(WORKERS)), events)
        self._stream: SyntheticStream | None = None
        self._seq: Counter[str] = Counter()
        self._factor, self._began_ns, self._frames = 1, 0, 0
        self._started = False
        self._wait_ready(events)

    def begin(self, factor: int) -> None:
        """From now on send features `factor` times as fast as a camera, stamped with the time of sending."""
        self._factor = factor
        self._stream = SyntheticStream(SESSION, self.specs)
        self._began_ns, self._frames = self.clock.now_ns(), 0
        if not self._started:
            self._started = True
            self._child.start(self._began_ns)

    def feed(self) -> float:
        """Send what is due; returns the seconds until the next is."""
        assert self._stream is not None, "begin() comes first"
        period_ns = NS_PER_S // (FRAME_HZ * self._factor)
        now_ns = self.clock.now_ns()
        # After a stall of this process, do not catch up.
        self._frames = max(self._frames, (now_ns - self._began_ns) // period_ns - 5)
        while (due_ns := self._began_ns + self._frames * period_ns) <= now_ns:
            self._frames += 1
            for message in self._stream.next():
                self._send(message, due_ns)
        for publisher in self._publishers.values():
            publisher.service()
        return max((due_ns - self.clock.now_ns()) / NS_PER_S, 0.0)

    def close(self) -> None:
        self._child.end(3.0)
        for publisher in self._publishers.values():
            publisher.close()

    def _send(self, message: FeatureWindow, due_ns: int) -> None:
        """Send a message, shifted to its due time on the session's clock."""
        spec: ModalitySpec = self.specs[message.modality]
        shift_ns = due_ns - message.t_end_ns
        times_ns = message.times_ns + shift_ns
        seq = self._seq[spec.name]
        self._seq[spec.name] += 1
        moved = msgspec.structs.replace(
            message,
            seq=seq,
            t_start_ns=min(message.t_start_ns + shift_ns, int(times_ns[0])),
            t_end_ns=due_ns,
            times_ns=times_ns,
            stamps={"read": due_ns, "sent": self.clock.now_ns()},
        )
        self._publishers[spec.name].send(encode_features(moved), keep=spec.snapshot)
        self.sent[spec.name] += 1

    def _wait_ready(self, events: queue.SimpleQueue[Event]) -> None:
        until_s = time.monotonic() + _READY_S
        while time.monotonic() < until_s:
            try:
                event = events.get(timeout=0.1)
            except queue.Empty:
                continue
            if event.state == "ready":
                return
            if event.state in ("failed", "exited"):
                break
        self.close()
        raise WorkerError(f"the inference process did not start; see {self._child.log}")


def measure_flood(engine: str, checkpoint: str, seconds: float, stopping: threading.Event) -> dict[str, Any]:
    """Latency and memory of inference at the pace of a camera, then at ten times that, for `seconds` each."""
    results: dict[str, Any] = {}
    with (
        InferenceUnderLoad(engine, checkpoint) as load,
        Subscriber(load.config.bus.endpoint(), session=SESSION) as subscriber,
    ):
        for name, pace in (("unloaded", 1), ("flood of 10x", 10)):
            sent, drops = sum(load.sent.values()), Counter(_drops(subscriber))
            load.begin(pace)
            latencies, memory, began_s = [], [], time.monotonic()
            while not stopping.is_set() and (at_s := time.monotonic() - began_s) < seconds + _SETTLE_S:
                wait_s = load.feed()
                predictions = subscriber.wait(min(wait_s, 0.01))
                if at_s > _SETTLE_S:
                    latencies += [p.latency["total"] for p in predictions if "total" in p.latency]
                status = subscriber.statuses.get("inference")
                if at_s > _SETTLE_S and status is not None and status.rss_mb is not None:
                    memory.append(status.rss_mb)
            now = Counter(_drops(subscriber))
            results[name] = {
                "latency_ms": describe(latencies),
                "sent_per_s": round((sum(load.sent.values()) - sent) / (seconds + _SETTLE_S)),
                "predictions_per_s": round(len(latencies) / seconds, 1),
                "rss_mb": round(float(np.median(memory)), 1) if memory else None,
                "drops": dict(now - drops),
                "lost": subscriber.lost,
            }
    before, after = (results.get(name, {}) for name in ("unloaded", "flood of 10x"))
    if before.get("latency_ms", {}).get("n") and after.get("latency_ms", {}).get("n"):
        p99 = after["latency_ms"]["p99"] / before["latency_ms"]["p99"]
        memory_ratio = after["rss_mb"] / before["rss_mb"]
        results["p99 ratio"] = round(p99, 2)
        results["memory ratio"] = round(memory_ratio, 3)
        results["holds"] = {"p99 <= 2x": p99 <= 2.0, "memory <= +10 %": memory_ratio <= 1.10}
    return results


def measure_subscribers(engine: str, checkpoint: str, seconds: float, stopping: threading.Event) -> dict[str, Any]:
    """What each of many subscribers gets of a stream at a camera's pace, one of them never reading."""
    with ExitStack() as stack:
        load = stack.enter_context(InferenceUnderLoad(engine, checkpoint))
        endpoint = load.config.bus.endpoint()
        readers = [Receiver(endpoint, (topic("prediction", SESSION),)) for _ in range(_FAST)]
        for receiver in (Receiver(endpoint, (b"",)), *readers):  # the first never reads
            stack.callback(receiver.close)
        observer = stack.enter_context(Subscriber(endpoint, session=SESSION))
        slowly = [stack.enter_context(Subscriber(endpoint, session=SESSION, newest_only=True)) for _ in range(_SLOW)]
        poller = zmq.Poller()
        for reader in readers:
            poller.register(reader.socket, zmq.POLLIN)
        owner = {reader.socket: index for index, reader in enumerate(readers)}
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        got: Counter[int] = Counter()
        ages_ms: list[float] = []
        memory: list[float] = []
        slow_next_s = [0.0] * _SLOW
        load.begin(1)
        began_s = time.monotonic()
        while not stopping.is_set() and (at_s := time.monotonic() - began_s) < seconds + _SETTLE_S:
            wait_s = load.feed()
            for ready, _ in poller.poll(int(min(wait_s, 0.01) * 1000)):
                index = owner[ready]
                for prediction in map(decode_prediction, readers[index].drain()):
                    if at_s > _SETTLE_S:
                        first.setdefault(index, prediction.seq)
                        last[index] = prediction.seq
                        got[index] += 1
            for index, slow_one in enumerate(slowly):
                if at_s >= slow_next_s[index]:
                    slow_next_s[index] = at_s + _SLOW_S
                    newest = slow_one.poll()
                    if newest and at_s > _SETTLE_S:
                        ages_ms.append((load.clock.now_ns() - newest[-1].t_end_ns) / 1e6)
            observer.poll()
            status = observer.statuses.get("inference")
            if status is not None and status.rss_mb is not None:
                memory.append(status.rss_mb)
        lowest, highest = min(first.values(), default=0), max(last.values(), default=0)
        published = highest - lowest + 1
        shares = [got[index] / published for index in range(_FAST)]
        return {
            "published": published,
            "fast": _FAST,
            "share of predictions, worst fast subscriber": round(min(shares), 4),
            "slow": _SLOW,
            "age at slow subscribers_ms": describe(ages_ms),
            "skipped by slow subscribers": sum(reader.skipped for reader in slowly),
            "lost by slow subscribers": sum(reader.lost for reader in slowly),
            "stalled": 1,
            "rss_mb": {"first": round(memory[0], 1), "last": round(memory[-1], 1)} if memory else None,
            "holds": {"every fast one gets >= 99 %": min(shares) >= 0.99},
        }


def _drops(subscriber: Subscriber) -> dict[str, int]:
    status = subscriber.statuses.get("inference")
    return dict(status.drops) if status is not None else {}
