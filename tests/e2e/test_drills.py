"""Short runs of the drills that print figures: they run, do what they say, and judge. Limits are not tested here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber
from tests.e2e.conftest import command
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.assets,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals"),
]


def bench(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """A report's results, and what was printed on the way."""
    report = tmp_path / "report.json"
    ran = subprocess.run(
        command("bench", *arguments, "--json", str(report)), capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr
    results: dict[str, Any] = json.loads(report.read_text())["results"]
    return results, ran.stderr


def test_chaos_injects_faults_and_reports_their_effect(tmp_path: Path) -> None:
    results, log = bench(tmp_path, "chaos", "--minutes", "0.5", "--every", "10")
    assert len(results["faults"]) >= 2
    for outcome in results["faults"]:
        assert outcome["fault"] in log
        assert outcome["memory_mb"] > 0
        if outcome["fault"].startswith(("kill", "hang")) and "inference" not in outcome["fault"]:
            assert outcome["masked_s"] is not None
            assert outcome["reason"]
    assert results["predictions"] > 20
    assert set(results["holds"]) == {
        "every fault survived",
        "recovered p95 <= 5 s",
        "no process grows > 5 %",
        "every gap explained",
    }


def test_flood_is_counted_and_predictions_continue(tmp_path: Path) -> None:
    results, _ = bench(tmp_path, "flood", "--seconds", "4")
    flood = results["flood of 10x"]
    assert flood["sent_per_s"] > 3 * results["unloaded"]["sent_per_s"]
    assert flood["latency_ms"]["n"] > 10
    assert flood["drops"]["superseded"] > 10
    assert results["memory ratio"] < 1.5


def test_slow_subscriber_does_not_affect_others(tmp_path: Path) -> None:
    results, _ = bench(tmp_path, "subscribers", "--seconds", "5")
    assert results["published"] > 20
    # Of 150: on a machine that is busy, one or two are under way when it ends.
    assert results["share of predictions, worst fast subscriber"] >= 0.95
    assert results["age at slow subscribers_ms"]["n"] > 20


def test_signal_steps_the_wall_clock_of_one_process(port: int) -> None:
    """The supervisor reports a step of its own clock, and session time is unaffected."""
    arguments = ("run", "--clip", str(SAMPLE), "--loop", "--asr", "none", "--quiet", "--port", str(port))
    stepped = [sys.executable, "-m", "mien.stream.bench.stepped", *arguments]
    session = subprocess.Popen(stepped, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
            wait_until(lambda: subscriber.wait(0.2) and "supervisor" in subscriber.statuses, timeout_s=180)
            assert subscriber.statuses["supervisor"].detail["clock_step_ms"] == 0
            before_ns = subscriber.statuses["supervisor"].t_ns
            session.send_signal(signal.SIGUSR1)
            wait_until(lambda: subscriber.wait(0.2) and subscriber.statuses["supervisor"].detail["clock_step_ms"])
            after = subscriber.statuses["supervisor"]
        assert abs(int(after.detail["clock_step_ms"] or 0) - 3_600_000) < 1000
        assert 0 < after.t_ns - before_ns < 300e9
    finally:
        session.terminate()
        session.wait(30)
