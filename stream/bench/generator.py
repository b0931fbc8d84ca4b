"""A process that sends what the workers of many sessions would send, at a camera's pace, over real sockets.

`python -m mien.stream.bench.generator` reads one JSON line with a `Task`, writes one with the addresses at which it
publishes, and begins when it is told the moment, in `time.monotonic_ns()`. It ends with its standard input, and writes
how late it sent its frames. `start_generator`, `endpoints_of` and `lateness_of` are the other end of its pipes.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import zmq

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import BusConfig
from mien.messages import ModalitySpec
from mien.stream.bench.synthetic import FRAME_HZ, SyntheticStream
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.poller import make_room
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_features
from mien.stream.processes.child import close_input, send_line

RUN = 1
LEAD_S = 6  # rows from before the beginning, so that windows are full; sent faster, they would flood the receiver
# A thread that spins for work takes the core that another process needs.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Task(msgspec.Struct, frozen=True):
    """What a generator is to send. `first` of `total` streams is its own first: they do not all blink together."""

    sessions: tuple[str, ...]
    specs: tuple[ModalitySpec, ...]
    first: int
    total: int
    frame_hz: float = FRAME_HZ
    bus: BusConfig = BusConfig()


def start_generator(task: Task) -> subprocess.Popen[str]:
    """A generator that has its task."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mien.stream.bench.generator"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT},
        start_new_session=os.name == "posix",
    )  # fmt: skip
    send_line(process, msgspec.json.encode(task).decode())
    return process


def endpoints_of(generator: subprocess.Popen[str]) -> dict[str, dict[str, str]]:
    """Of each session, by modality, where a generator publishes its rows; empty if it has died."""
    assert generator.stdout is not None
    line = generator.stdout.readline()
    return msgspec.json.decode(line, type=dict[str, dict[str, str]]) if line else {}


def lateness_of(generator: subprocess.Popen[str]) -> float:
    """End a generator. Returns by how many milliseconds it sent its frames too late: the 99th percentile."""
    assert generator.stdout is not None
    close_input(generator)
    return float(generator.stdout.readline() or "nan")


def due_ns(begin_ns: int, stream: int, total: int, frame: int, frame_hz: float = FRAME_HZ) -> int:
    """When a stream's frame is captured, in `time.monotonic_ns()`; its first `LEAD_S` lie before `begin_ns`."""
    start_ns = begin_ns - LEAD_S * NS_PER_S + int(stream * NS_PER_S / frame_hz) // total
    return start_ns + int(frame * NS_PER_S / frame_hz)


def main() -> None:
    """Follow the orders on standard input."""
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    make_room(len(task.sessions))
    clock, any_port = Clock(), task.bus.endpoint().rpartition(":")[0] + ":*"
    senders = [{spec.name: Publisher(any_port, task.bus) for spec in task.specs} for _ in task.sessions]
    publishers = [publisher for sender in senders for publisher in sender.values()]
    for publisher in publishers:
        publisher.on_clock_request = lambda question: answer_question(question, RUN, clock)
    endpoints = {
        name: {modality: publisher.socket.get_string(zmq.LAST_ENDPOINT) for modality, publisher in sender.items()}
        for name, sender in zip(task.sessions, senders, strict=True)
    }
    print(msgspec.json.encode(endpoints).decode(), flush=True)
    begin: list[int] = []
    threading.Thread(target=lambda: begin.append(int(sys.stdin.readline() or 0)), daemon=True).start()
    while not begin:
        for publisher in publishers:
            publisher.service()
        time.sleep(0.01)
    over = threading.Event()
    threading.Thread(target=_until_end, args=(over,), daemon=True).start()
    late_ms = _play(senders, task, clock, begin[0], over)
    with contextlib.suppress(BrokenPipeError):  # the benchmark was interrupted
        print(late_ms, flush=True)


def _until_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def _play(senders: list[dict[str, Publisher]], task: Task, clock: Clock, begin_ns: int, over: threading.Event) -> float:
    """Send all frames. Returns the 99th percentile of their lateness, in milliseconds."""
    specs = {spec.name: spec for spec in task.specs}
    waiting, late_ns = [], [0]
    for number, (name, sender) in enumerate(zip(task.sessions, senders, strict=True), task.first):
        first_ns = due_ns(begin_ns, number, task.total, 0, task.frame_hz)
        stream = SyntheticStream(name, specs, number, first_ns + clock.anchor_ns, task.frame_hz)
        waiting.append((first_ns, number, stream, sender))
    heapq.heapify(waiting)
    while not over.is_set():
        captured_ns, number, stream, sender = waiting[0]
        wait_ns = captured_ns - time.monotonic_ns()
        if wait_ns > 0:
            over.wait(wait_ns / NS_PER_S)
            continue
        if captured_ns >= begin_ns:
            late_ns.append(-wait_ns)
        for message in stream.next():
            stamps = {"read": captured_ns + clock.anchor_ns, "sent": clock.now_ns()}
            frames = encode_features(msgspec.structs.replace(message, stamps=stamps))
            sender[message.modality].send(frames, keep=specs[message.modality].snapshot)
        heapq.heapreplace(waiting, (stream.due_ns - clock.anchor_ns, number, stream, sender))
    return round(float(np.percentile(late_ns, 99)) / NS_PER_MS, 2)


if __name__ == "__main__":
    main()
