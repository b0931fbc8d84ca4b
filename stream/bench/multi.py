"""Many streams served by one inference process, measured from outside: real sockets, real processes, one subscriber."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import WorkerError
from mien.messages import WORKER_OF, Span, Status
from mien.models.checkpoint import load_checkpoint
from mien.stream.bench.generator import (
    ENVIRONMENT,
    LEAD_S,
    RUN,
    Task,
    due_ns,
    endpoints_of,
    lateness_of,
    start_generator,
)
from mien.stream.bench.streams import stream_figures
from mien.stream.bench.synthetic import FRAME_HZ
from mien.stream.bus.ports import free_port
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import decode_status
from mien.stream.processes.child import send_line, wait_or_kill

WARM_UP_S = 2.0
_READY_S = 180.0
_BEGIN_S = LEAD_S + 0.5  # between the order to begin and the first frame that counts, until when windows fill
_STREAMS_A_GENERATOR = 32  # one with 128 cannot keep its pace on a slow core
_READ = 256  # streams whose predictions are read, evenly spread; all are received
_QUEUE = 100_000


class _Received(msgspec.Struct, frozen=True):
    """What is read of a prediction: as little as possible, since all of them come to one reader."""

    session: str
    seq: int
    model: str = ""
    inputs: dict[str, tuple[Span, ...]] = {}
    age_ms: dict[str, float | None] = {}


_decode = msgspec.json.Decoder(_Received).decode


def measure_streams(
    checkpoint: str, engine: str, streams: int, seconds: float, processes: int = 1, python: str = sys.executable
) -> dict[str, Any]:
    """`streams` sessions of 30 frames a second each, sent by generator processes to one inference process.

    Latency is from the moment a frame is captured to the moment its prediction is with the subscriber. A frame that is
    overtaken by its stream's next one is counted as dropped. `generators_late_ms` is by how much the generators sent
    their frames too late (p99): where that is long, the machine was too small for the benchmark itself.

    Args:
        checkpoint, engine, processes: as in the configuration of inference.
        python: the interpreter of the mien that is measured; this one's by default.
    """
    specs = load_checkpoint(checkpoint).specs
    names = [f"stream-{number}" for number in range(streams)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        generators = []
        for first in range(0, streams, _STREAMS_A_GENERATOR):
            task = Task(tuple(names[first : first + _STREAMS_A_GENERATOR]), specs, first, streams)
            generators.append(stack.enter_context(_ending(start_generator(task))))
        endpoints = {name: at for generator in generators for name, at in endpoints_of(generator).items()}
        if len(endpoints) < streams:
            raise WorkerError("a generator of streams did not start")
        port = free_port()
        settings = {"bus.port": port, "inference.engine": engine, "inference.checkpoint": checkpoint}
        # An older mien does not know the number of processes.
        settings |= {"inference.processes": processes} if processes != 1 else {}
        process = stack.enter_context(_inference(python, settings, folder, endpoints))
        receiver = Receiver(f"tcp://127.0.0.1:{port}", (b"prediction/", b"status/"), _QUEUE)
        stack.callback(receiver.close)
        _wait_ready(receiver, process, set(names), folder / "inference.log")
        begin_ns = time.monotonic_ns() + int(_BEGIN_S * NS_PER_S)
        for generator in generators:
            send_line(generator, str(begin_ns))
        figures = _follow(receiver, process, streams, begin_ns + int(WARM_UP_S * NS_PER_S), begin_ns, seconds)
        return figures | {"generators_late_ms": max(lateness_of(generator) for generator in generators)}


def _follow(
    receiver: Receiver, process: subprocess.Popen[str], streams: int, from_ns: int, begin_ns: int, seconds: float
) -> dict[str, Any]:
    step = -(-streams // _READ)
    numbers = {f"stream-{number}": number for number in range(0, streams, step)}
    read = {f"prediction/{name}/".encode() for name in numbers}
    latencies: list[float] = []
    jitter: list[float] = []
    ages: dict[str, list[float]] = {}
    came_ns: dict[str, int] = {}
    seqs: dict[str, tuple[int, int]] = {}
    statuses: dict[str, Status] = {}
    first_drops: Counter[str] = Counter()
    model, lost = "", 0
    until_ns = from_ns + int(seconds * NS_PER_S)
    began: tuple[int, float] | None = None  # when, and the processor time used until then
    while (now_ns := time.monotonic_ns()) < until_ns:
        if began is None and now_ns >= from_ns:
            began, first_drops = (now_ns, _used_s(process)), _drops(statuses)
        receiver.socket.poll(5)
        for frames in receiver.drain(_QUEUE):
            now_ns = time.monotonic_ns()
            if frames[0].startswith(b"status/"):
                status = decode_status(frames)
                statuses[status.session] = status
                continue
            if frames[0] not in read or now_ns < from_ns or now_ns >= until_ns:
                continue
            received = _decode(frames[2])
            before = seqs.get(received.session)
            seqs[received.session] = (before[0] if before else received.seq), received.seq
            lost += max(received.seq - before[1] - 1, 0) if before else 0
            frame = max((last for run, _, last in received.inputs.get("vision", ()) if run == RUN), default=None)
            if frame is None:
                continue  # not of a frame: the timer's
            model = received.model
            latencies.append((now_ns - due_ns(begin_ns, numbers[received.session], streams, frame)) / NS_PER_MS)
            if received.session in came_ns:
                jitter.append(abs(now_ns - came_ns[received.session] - NS_PER_S / FRAME_HZ) / NS_PER_MS)
            came_ns[received.session] = now_ns
            for name, age in received.age_ms.items():
                if age is not None:
                    ages.setdefault(name, []).append(age)
    figures = stream_figures(streams, seconds, latencies, jitter, ages, len(numbers))
    drops = _drops(statuses) - first_drops
    began_ns, before_s = began or (from_ns, 0.0)
    cpu_s, elapsed_s = _used_s(process) - before_s, (time.monotonic_ns() - began_ns) / NS_PER_S
    return {
        **figures,
        "model": model,
        "drops": dict(drops) | ({"lost by the subscriber": lost} if lost else {}),
        "steps_us": _steps(statuses.values()),
        "cpu_percent": round(cpu_s / max(elapsed_s, 1e-3) * 100, 1),
        "cpu_us": round(cpu_s * 1e6 / max(len(latencies) * streams // len(numbers), 1), 1),  # per window
        "rss_mb": round(sum(each.memory_info().rss for each in _family(process)) / 2**20, 1),
        "warm_up_s": WARM_UP_S,
    }


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A process and those that it started."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def _used_s(process: subprocess.Popen[str]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in _family(process))


@contextmanager
def _inference(
    python: str, settings: dict[str, Any], folder: Path, endpoints: dict[str, dict[str, str]]
) -> Iterator[subprocess.Popen[str]]:
    """`mien infer` with all sessions, each with workers of its own elsewhere."""
    files = []
    for name, at in endpoints.items():
        own = {"session": name} | {f"bus.workers.{WORKER_OF[modality]}": address for modality, address in at.items()}
        lines = [f"{key} = {json.dumps(value)}" for key, value in (settings | own).items()]
        files.append(folder / f"{name}.toml")
        files[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    also = [argument for path in files[1:] for argument in ("--also", str(path))]
    command = [python, "-m", "mien", "infer", "-c", str(files[0]), *also]
    with (folder / "inference.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=log, text=True, env={**os.environ, **ENVIRONMENT}
        )
        with _ending(process):
            yield process


@contextmanager
def _ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    try:
        yield process
    finally:
        process.terminate()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        wait_or_kill(process, 10)


def _wait_ready(receiver: Receiver, process: subprocess.Popen[str], missing: set[str], log: Path) -> None:
    """Until every session has reported, and the workers' clocks have been queried."""
    deadline_s = time.monotonic() + _READY_S
    while missing:
        if process.poll() is not None or time.monotonic() > deadline_s:
            log_lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise WorkerError(
                f"the inference process did not start: {log_lines[-1] if log_lines else 'it said nothing'}"
            )
        receiver.socket.poll(100)
        for frames in receiver.drain(_QUEUE):
            if frames[0].startswith(b"status/"):
                status = decode_status(frames)
                if "video.clock_error_ms" in status.detail:
                    missing.discard(status.session)


def _drops(statuses: dict[str, Status]) -> Counter[str]:
    return sum((Counter(status.drops) for status in statuses.values()), Counter())


def _steps(statuses: Iterable[Status]) -> dict[str, float]:
    """Microseconds a window by step, as the inference processes say: the mean over them."""
    found: dict[str, dict[int, float]] = {}
    for status in statuses:
        for name, value in status.detail.items():
            if name.startswith("us.") and isinstance(value, int | float):
                found.setdefault(name[3:], {})[status.pid] = float(value)
    return {name: round(sum(by.values()) / len(by), 1) for name, by in found.items()}
