"""The supervisor's reports on a session and its clock. The wall clock is set in a separate process."""

from __future__ import annotations

import subprocess
import sys

from mien.clock import Clock
from mien.stream.monitoring.report import Report

STEP = """
import sys
from mien.clock import Clock
from mien.stream.bench.stepped import step_wall_clock
from mien.stream.monitoring.report import Report
clock = Clock()
report = Report("s", clock)
assert report.wall_step() is None
before_ns = clock.now_ns()
step_wall_clock(float(sys.argv[1]))
print(report.wall_step())
assert report.wall_step() is None, "said once"
assert 0 <= clock.now_ns() - before_ns < 60e9, "session time is not moved"
print(report.of_session({"video": "running"}).detail["clock_step_ms"])
"""


def test_wall_clock_step_is_reported_once() -> None:
    for seconds, shown in ((3600.0, "+3600.0 s"), (-90.0, "-90.0 s")):
        line = [sys.executable, "-c", STEP, str(seconds)]
        lines = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        assert shown in lines[0]
        assert abs(int(lines[1]) - seconds * 1000) <= 5


def test_session_state_is_the_worst_of_its_processes() -> None:
    report = Report("s", Clock())
    assert report.of_session({"video": "running", "text": "ended"}).state == "running"
    report.add_fault("video", "the video process died")
    report.restarts["video"] += 1
    degraded = report.of_session({"video": "down", "text": "running"})
    assert degraded.state == "degraded"
    assert degraded.last_error == "the video process died"
    assert degraded.detail["video.state"] == "down"
    assert degraded.detail["video.restarts"] == 1
    instead = report.of_worker("video", "failed")
    assert (instead.run, instead.pid, instead.last_error) == (0, 0, "the video process died")
    report.faults.clear()
    well = report.of_session({"video": "running", "text": "running"})
    assert well.state == "running"
    assert well.last_error == "the video process died", "the last error is still reported"
