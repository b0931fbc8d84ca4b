"""Session time looks like Unix time and advances with the monotonic clock."""

from __future__ import annotations

import subprocess
import sys
import time

from mien.clock import Clock, read_anchor_ns


def test_clock_shows_the_time_of_day_of_its_creation() -> None:
    before = time.time_ns()
    now = Clock().now_ns()
    after = time.time_ns()
    # The anchor is read from two clocks one after the other; a millisecond covers the moment in between.
    assert before - 1_000_000 <= now <= after + 1_000_000


def test_a_given_anchor_is_kept() -> None:
    clock = Clock(anchor_ns=123)
    before = time.monotonic_ns()
    now = clock.now_ns()
    assert clock.anchor_ns == 123
    assert before <= now - 123 <= time.monotonic_ns()


def test_wall_clock_steps_move_nothing() -> None:
    # An hour off, as after a step of the system's time: only the anchor differs, the distance of two moments does not.
    right, wrong = Clock(read_anchor_ns()), Clock(read_anchor_ns() + 3_600_000_000_000)
    first = right.now_ns(), wrong.now_ns()
    second = right.now_ns(), wrong.now_ns()
    assert second[0] >= first[0]
    assert abs((second[0] - first[0]) - (second[1] - first[1])) < 1_000_000_000


def test_processes_of_a_session_share_a_time_line() -> None:
    clock = Clock()
    code = f"from mien.clock import Clock; print(Clock({clock.anchor_ns}).now_ns())"
    before = clock.now_ns()
    there_ns = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert before <= there_ns <= clock.now_ns()
