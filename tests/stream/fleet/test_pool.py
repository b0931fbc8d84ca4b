"""A pool and a capture host without Ray: a real inference process whose sessions come and go."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from mien.config import Config, merge
from mien.messages import Prediction
from mien.stream.bus.subscriber import Subscriber
from mien.stream.fleet.capture import CaptureHost
from mien.stream.fleet.orders import Captured, CaptureReport, CaptureTask, MemberOrder, PoolReport
from mien.stream.fleet.plan import RecordingPlan
from mien.stream.fleet.pool import PoolHost
from mien.stream.processes.control import Assignment
from tests.waiting import wait_until

TIMEOUT_S = 90.0
encode = msgspec.json.encode


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def pool() -> Iterator[PoolHost]:
    opened = PoolHost("test", "pool-1", "127.0.0.1", encode(Config()), 2, guarded=False)
    yield opened
    opened.close()


@pytest.fixture
def captures() -> Iterator[CaptureHost]:
    opened = CaptureHost("test", "127.0.0.1", guarded=False, recording=RecordingPlan())
    yield opened
    opened.close()


def config_of(name: str) -> Config:
    return merge({}, {"session": name, "video.source": "synthetic:10", "audio.source": "none"})


until = partial(wait_until, timeout_s=TIMEOUT_S)


def capture(captures: CaptureHost, *names: str) -> dict[str, Captured]:
    """Have these sessions captured, and nothing else."""
    order = encode(MemberOrder(len(names), tuple(CaptureTask(config_of(name), 1, 19_000) for name in names)))
    reports: list[CaptureReport] = []

    def all_run() -> bool:
        reports.append(msgspec.json.decode(captures.sync(order), type=CaptureReport))
        return all(reports[-1].sessions[name].state == "running" for name in names)

    until(all_run)
    return reports[-1].sessions


def assignment(name: str, captured: Captured, run: int) -> Assignment:
    config = config_of(name)
    workers = msgspec.structs.replace(config.bus.workers, **captured.endpoints)
    config = msgspec.structs.replace(config, bus=msgspec.structs.replace(config.bus, workers=workers))
    return Assignment(config, 0, captured.workers, captured.absent, captured.origin, captured.label, run=run)


def order(pool: PoolHost, version: int, *assignments: Assignment) -> PoolReport:
    return msgspec.json.decode(pool.sync(encode(MemberOrder(version, assignments))), type=PoolReport)


def ask(pool: PoolHost) -> PoolReport:
    return msgspec.json.decode(pool.sync(encode(MemberOrder(0))), type=PoolReport)


def test_sessions_and_runs_follow_orders(pool: PoolHost, captures: CaptureHost) -> None:
    captured = capture(captures, "a", "b", "c")
    until(lambda: ask(pool).state == "ready")
    predictions: list[Prediction] = []
    with Subscriber(ask(pool).endpoint) as subscriber:

        def arrives(name: str, run: int) -> bool:
            ask(pool)  # as a directory does all the time: what was refused is tried again
            predictions.extend(subscriber.wait(0.05))
            return any((p.session, p.run) == (name, run) and p.abstains is None for p in predictions)

        order(pool, 1, assignment("a", captured["a"], 101))
        until(lambda: arrives("a", 101))
        order(pool, 2, assignment("a", captured["a"], 102), assignment("b", captured["b"], 103))
        until(lambda: arrives("a", 102) and arrives("b", 103))
        runs = [p.run for p in predictions if p.session == "a"]
        assert runs == sorted(runs)
        # Room is for two: the third is refused, and the others are none the worse for it.
        three = [assignment(name, captured[name], run) for name, run in (("a", 102), ("b", 103), ("c", 104))]
        order(pool, 3, *three)
        until(lambda: "room for 2" in ask(pool).sessions["c"].error)
        # One leaves: its place is taken by the third, whose windows begin with nothing.
        order(pool, 4, three[0], three[2])
        until(lambda: arrives("c", 104))
        until(lambda: subscriber.wait(0.05) is not None and "b" not in ask(pool).sessions)
        predictions.clear()
        until(lambda: arrives("a", 102) and arrives("c", 104))
        assert not [p for p in predictions[20:] if p.session == "b"]
    with Subscriber(ask(pool).endpoint) as late:
        until(
            lambda: len({p.session for p in predictions[-50:]}) == 2,
            meanwhile=lambda: predictions.extend(late.wait(0.05)),
        )
        assert "b" not in {p.session for p in late.wait(0.5)}
    served = ask(pool).sessions["a"]
    assert (served.run, served.state) == (102, "running")
    assert served.p99_ms is not None


def test_a_pool_reports_that_its_process_died(pool: PoolHost) -> None:
    import os
    import signal

    until(lambda: ask(pool).state == "ready")
    os.kill(pool.processes()[-1], signal.SIGKILL)
    until(lambda: ask(pool).state == "dead")
    assert "died" in ask(pool).error


def test_missing_clip_is_reported_and_retried(captures: CaptureHost) -> None:
    config = merge({}, {"session": "gone", "video.source": "/nowhere/clip.mp4", "audio.source": "none"})
    order = encode(MemberOrder(1, (CaptureTask(config, 1, 19_000),)))
    reports: list[Captured] = []

    def failed() -> bool:
        reports.append(msgspec.json.decode(captures.sync(order), type=CaptureReport).sessions["gone"])
        return reports[-1].state == "failed"

    until(failed)
    assert "clip.mp4" in reports[-1].error


def test_change_to_another_version_is_refused(captures: CaptureHost) -> None:
    tasks = tuple(
        CaptureTask(
            merge({}, {"session": name, "video.source": "/nowhere/clip.mp4", "audio.source": "none"}), 1, 19_000
        )
        for name in ("a", "b")
    )

    def ordered(*order: object, **more: object) -> tuple[int, set[str]]:
        reports = msgspec.json.decode(captures.sync(encode(MemberOrder(*order, **more))), type=CaptureReport)  # type: ignore[arg-type]
        return reports.version, set(reports.sessions)

    assert ordered(1, tasks[:1]) == (1, {"a"})
    assert ordered(8, (), since=7, gone=("a",)) == (1, {"a"})
    assert ordered(2, tasks[1:], since=1) == (2, {"a", "b"})
    assert ordered(3, (), since=2, gone=("a",)) == (3, {"b"})
    assert ordered(4, tasks[:1]) == (4, {"a"})
