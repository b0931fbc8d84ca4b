"""Hanging or dying processes of a running session: it reports them, masks, and recovers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

import mien
from mien.messages import Prediction, Status
from mien.stream.bus.subscriber import Subscriber
from tests.e2e.test_run import family, running

_POSIX = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.assets, _POSIX]
TIMEOUT_S = 90.0


class Watch:
    """A subscriber that records what it receives."""

    def __init__(self, port: int) -> None:
        self.subscriber = Subscriber(f"tcp://127.0.0.1:{port}")
        self.received: list[Status] = []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.subscriber.close()

    def until(self, condition: Callable[[Prediction], bool], what: str) -> Prediction:
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            predictions = self.subscriber.wait(0.2)
            self.received += [
                status for status in self.subscriber.statuses.values() if status not in self.received[-20:]
            ]
            for prediction in predictions:
                if condition(prediction):
                    return prediction
        raise AssertionError(f"{what} did not come; {self.subscriber.statuses}")

    def has_reported(self, worker: str, text: str) -> bool:
        return any(status.worker == worker and text in (status.last_error or "") for status in self.received)


def process_of(session: psutil.Popen, worker: str) -> psutil.Process:
    found: psutil.Process = next(p for p in family(session) if worker in p.cmdline() or worker[:5] in p.cmdline())
    return found


def test_hung_worker_is_masked_killed_and_restarted(port: int) -> None:
    with running(port, "--session", "hung") as session, Watch(port) as watch:
        before = watch.until(lambda p: p.gates.get("vision", 0.0) > 0.0, "a face")
        hung = process_of(session, "video")
        hung.send_signal(signal.SIGSTOP)
        masked = watch.until(lambda p: "vision" in p.absent, "the mask")
        assert masked.gates["vision"] == 0.0
        assert masked.gates["audio"] > 0.0 or masked.abstains or masked.age_ms["audio"] is None
        back = watch.until(lambda p: "vision" not in p.absent, "the face again")
        assert back.run == before.run, "inference never stopped"
        assert not hung.is_running(), "it was killed, and is no zombie"
        assert watch.has_reported("supervisor", "did not respond")
        assert watch.has_reported("video", "did not respond")
        watch.until(lambda _: watch.subscriber.statuses["supervisor"].detail["video.restarts"] == 1, "the count")
        watch.until(lambda _: watch.subscriber.statuses["video"].state == "running", "its own word")


def test_inference_restarts_and_the_gap_is_explained(port: int) -> None:
    with running(port, "--session", "gap") as session, Watch(port) as watch:
        before = watch.until(lambda p: bool(p.gates.get("vision")), "a face")
        process_of(session, "infer").kill()
        back = watch.until(lambda p: p.run != before.run, "the successor")
        assert back.seq < before.seq + 1000
        watch.until(lambda _: watch.has_reported("supervisor", "the inference process died"), "the explanation")
        assert watch.subscriber.statuses["supervisor"].detail["inference.restarts"] == 1


def test_a_hung_worker_does_not_outlive_its_supervisor(port: int) -> None:
    with running(port, "--session", "orphan") as session:
        children = family(session)
        process_of(session, "video").send_signal(signal.SIGSTOP)
        session.kill()
        session.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        for child in alive:
            child.kill()
        assert not alive
    with running(port, "--session", "orphan") as again:
        assert again.poll() is None


def test_paused_supervisor_reports_no_fault(port: int) -> None:
    """Ctrl-Z and a suspended machine look like silence of everybody else."""
    with running(port, "--session", "stopped") as session, Watch(port) as watch:
        before = watch.until(lambda p: bool(p.gates.get("vision")), "a face")
        pids = {child.pid for child in family(session)}
        session.send_signal(signal.SIGSTOP)
        time.sleep(3.5)
        session.send_signal(signal.SIGCONT)
        deadline_s = time.monotonic() + 3
        last = watch.until(lambda _: time.monotonic() > deadline_s, "predictions")
        assert last.run == before.run
        assert {child.pid for child in family(session)} == pids
        assert watch.subscriber.lost == 0


def test_crash_loop_is_reported_and_other_workers_continue(port: int) -> None:
    with running(port, "--session", "loop") as session, Watch(port) as watch:
        before = watch.until(lambda p: bool(p.gates.get("vision")), "a face")
        killed: set[int] = set()

        def kill_again(_: Prediction) -> bool:
            for child in family(session):
                if "audio" in child.cmdline() and child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()
            status = watch.subscriber.statuses.get("supervisor")
            return status is not None and status.detail.get("audio.state") == "crash loop"

        looping = watch.until(kill_again, "the crash loop")
        assert len(killed) >= 5
        assert "audio" in looping.absent
        assert looping.run == before.run
        assert looping.gates["vision"] > 0.0 or looping.age_ms["vision"] is None


def test_subscribers_of_the_public_function_see_faults_as_absence(port: int) -> None:
    with running(port, "--session", "public") as session:
        stream = mien.subscribe(f"tcp://127.0.0.1:{port}", timeout_s=60)
        next(p for p in stream if p.gates.get("vision"))
        process_of(session, "audio").kill()
        masked = next(p for p in stream if "audio" in p.absent)
        assert "the audio process died" in masked.absent["audio"] or "nothing received" in masked.absent["audio"]
        next(p for p in stream if "audio" not in p.absent)
