"""What a fleet adds to a session: the same rows at the same time through `mien infer` alone, and through a pool and the
gateway. Prints ratios; the machine decides them, so no test does."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from mien.config import BusConfig, load_config
from mien.stream.fleet.orders import CaptureTask
from mien.stream.fleet.synthetic import Batch, match_batches
from tests.fleet.conftest import MIEN, SMALL, Marked
from tests.fleet.listening import Listener
from tests.fleet.test_failures import Driver, all_run
from tests.ports import free_ports

pytestmark = [pytest.mark.fleet, pytest.mark.assets, pytest.mark.timeout(400)]
SECONDS = float(os.environ.get("MIEN_TEST_SECONDS", "20"))
SETTLE_S = 15.0  # clocks of other processes are known after some exchanges
TIMEOUT_S = 120.0
PLAN = (
    SMALL
    + """
[[sessions]]
name = "fleet"
source = "synthetic"
"""
)


class PlainInference:
    """Inference of one session, as `mien infer` runs it."""

    def __init__(self, marked: Marked) -> None:
        self._rows: list[Batch] = []
        settings = {"session": "alone", "video.source": "synthetic", "audio.source": "synthetic"}
        match_batches(self._rows, {"alone": CaptureTask(load_config(overrides=settings), 1, 0)}, BusConfig())
        deadline_s = time.monotonic() + TIMEOUT_S
        while not (endpoints := self._rows[0].report()["alone"].endpoints) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        port = free_ports(4)
        path = Path(marked.environment["XDG_STATE_HOME"]) / "alone.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        workers = "\n".join(f'{worker} = "{address}"' for worker, address in endpoints.items())
        path.write_text(f'session = "alone"\n[bus]\nport = {port}\n[bus.workers]\n{workers}\n', encoding="utf-8")
        self.address = f"tcp://127.0.0.1:{port}"
        self._process = subprocess.Popen([*MIEN, "infer", "--config", str(path)], env=marked.environment)

    def cpu_s(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        match_batches(self._rows, {}, BusConfig())


def test_fleet_overhead_over_plain_inference(marked: Marked, tmp_path: Path) -> None:
    port = free_ports(1)
    plan = tmp_path / "fleet.toml"
    plan.write_text(PLAN.format(port=port), encoding="utf-8")
    driver = Driver(marked, tmp_path, nodes=1)
    alone = PlainInference(marked)
    listeners = {"alone": Listener(alone.address), "fleet": Listener(f"tcp://127.0.0.1:{port}")}
    try:
        driver("start", str(plan))
        driver.wait(all_run)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not listeners["alone"].sessions["alone"].predictions:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        began_s, cpu_before = time.monotonic(), used(driver, alone)
        time.sleep(SECONDS)
        ended_s, cpu_after = time.monotonic(), used(driver, alone)
        latency_ms, each = {}, {}
        for name, listener in listeners.items():
            received = listener.sessions[name]
            latencies = [p[3] for p in received.predictions if began_s <= p[0] <= ended_s and p[4]]
            assert len(latencies) > SECONDS  # of thirty a second
            latency_ms[name] = np.percentile(latencies, (10, 50))
            each[name] = (cpu_after[name] - cpu_before[name]) / len(latencies) * 1e3
            statuses = [status for _, status in received.statuses if status.worker == "inference" and status.fps]
            predicted_ms = np.median([float(str(status.detail["latency_p50_ms"])) for status in statuses[-10:]])
            print(
                f"\n{name}: {len(latencies) / SECONDS:.1f} predictions a second; from capture to subscriber p10 "
                f"{latency_ms[name][0]:.2f}, p50 {latency_ms[name][1]:.2f} ms, to the prediction {predicted_ms:.2f}; "
                f"{each[name]:.2f} ms of CPU each; clock known to {statuses[-1].detail['video.clock_error_ms']} ms"
            )
        p10, p50 = latency_ms["fleet"] / latency_ms["alone"]
        print(
            f"the fleet's by that alone: {each['fleet'] / each['alone']:.2f} of CPU, {p10:.2f} of p10, {p50:.2f} of "
            f"p50; Ray, directory, gateway, actors: {(cpu_after['rest'] - cpu_before['rest']) / SECONDS:.3f} of a core"
        )
    finally:
        for listener in listeners.values():
            listener.close()
        alone.close()
        driver.close()
    assert marked.wait_gone(30) == []


def used(driver: Driver, alone: PlainInference) -> dict[str, float]:
    """CPU seconds until now."""
    usage = {kind: numbers[0] for kind, numbers in driver("usage").items() if kind != "generator"}
    return {"alone": alone.cpu_s(), "fleet": usage.pop("inference"), "rest": sum(usage.values())}
