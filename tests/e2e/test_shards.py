"""Sessions on several inference processes: one address for all, and restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mien.stream.bench.multi import measure_streams
from mien.stream.bus.subscriber import Subscriber
from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
TIMEOUT_S = 120.0


def start(folder: Path, count: int) -> tuple[subprocess.Popen[str], int]:
    """`mien infer` with so many sessions on two processes, whose workers are not there."""
    files, port = [], free_ports()
    for number in range(count):
        files.append(folder / f"{number}.toml")
        base = port if number == 0 else free_ports()
        files[-1].write_text(
            f'session = "s{number}"\nbus.port = {base}\ninference.processes = 2\ninference.engine = "torch"\n'
        )
    also = [argument for path in files[1:] for argument in ("--also", str(path))]
    command = [sys.executable, "-m", "mien", "infer", "-c", str(files[0]), *also]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True), port


@pytest.mark.timeout(400)
@pytest.mark.skipif(os.name == "nt", reason="kills a process of the other one's")
def test_dead_process_is_restarted_and_others_continue(tmp_path: Path) -> None:
    process, port = start(tmp_path, 3)
    runs: dict[str, list[int]] = {"s0": [], "s1": [], "s2": []}
    pids: dict[str, int] = {}
    failed: set[str] = set()

    def follow(subscriber: Subscriber, deadline_s: float) -> None:
        assert time.monotonic() < deadline_s, (runs, pids, failed)
        assert process.poll() is None
        for prediction in subscriber.wait(0.2):
            if prediction.run not in runs[prediction.session]:
                runs[prediction.session].append(prediction.run)
        for status in [subscriber.statuses.get("inference")]:
            if status is not None and status.state == "failed":
                failed.add(status.session)
            elif status is not None:
                pids[status.session] = status.pid

    try:
        with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
            deadline_s = time.monotonic() + TIMEOUT_S
            while len(pids) < 3 or not all(runs.values()):
                follow(subscriber, deadline_s)
            shards = psutil.Process(process.pid).children()
            assert len(shards) == len(set(pids.values())) == 2
            victim = pids["s0"]
            os.kill(victim, signal.SIGKILL)
            deadline_s = time.monotonic() + TIMEOUT_S
            hit = {name for name, pid in pids.items() if pid == victim}
            while any(len(runs[name]) < 2 for name in hit):
                follow(subscriber, deadline_s)
            assert failed <= hit
            assert all(len(runs[name]) == 1 for name in runs.keys() - hit)
    finally:
        process.terminate()
        process.wait(20)
    assert not psutil.pid_exists(victim)
    assert not [child for child in shards if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_terminated_benchmark_leaves_no_process_behind() -> None:
    command = [sys.executable, "-m", "mien", "bench", "multi", "--engine", "torch", "-n", "2", "--seconds", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        measured = psutil.Process(process.pid)
        wait_until(lambda: len(measured.children()) == 2, "a generator and inference")
        started = measured.children()
        process.terminate()
        printed, _ = process.communicate(timeout=TIMEOUT_S / 2)
    psutil.wait_procs(started, TIMEOUT_S)
    assert not [child for child in started if child.is_running()]
    assert "Traceback" not in printed


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("processes", [1, 2])
def test_streams_are_measured_over_real_sockets(processes: int) -> None:
    trial = measure_streams("", "torch", 2, 20.0, processes)
    assert trial["latency_ms"]["n"] > 0  # how many come in time, and how late, is the machine's
    assert trial["latency_ms"]["p50"] > 0
    assert trial["steps_us"].keys() - {"poll"} == {"receive", "look", "model", "publish", "tend"}
    assert trial["age_ms"].keys() == {"text", "audio", "vision"}
