"""When a directory adds a pool, moves a session, and stops a pool: decided from pools' reports, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from mien.stream.fleet import placement
from mien.stream.fleet.link import member_order
from mien.stream.fleet.orders import FULL, Captured, CaptureTask, MemberOrder, PoolReport, Served
from mien.stream.fleet.placement import Placement
from mien.stream.fleet.plan import read_plan
from mien.stream.fleet.roster import Member, Node


class Decisions(Placement):
    """A directory's decisions at test-controlled times; created and stopped members are recorded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, pools: str) -> None:
        path = folder / "fleet.toml"
        path.write_text(f"[pools]\n{pools}\n[[sessions]]\npattern = 's-{{n}}'\ncount = 3\nsource = 'synthetic'\n")
        super().__init__(None, read_plan(path), False)
        self.now_s, self.ended = 100.0, list[str]()
        monkeypatch.setattr(placement, "time", SimpleNamespace(monotonic=lambda: self.now_s, time=time.time))
        monkeypatch.setattr(self._actors, "gateway", lambda _: None)
        monkeypatch.setattr(
            self._actors, "member",
            lambda kind, name, node, room, *_: (Member(name, kind, node.id, room, 1.0, 0.0), None),
        )  # fmt: skip
        monkeypatch.setattr(self, "_end", lambda member: self.ended.append(member.name))
        self._roster.nodes["a"] = Node("a", "10.0.0.1", {"host": "a"}, cpus=16.0, gpus=0.0)

    def pass_time(self, seconds: float, cpu_percent: float = 10.0, p99_ms: float = 20.0) -> None:
        """Tenths of a second in which all orders are carried out; pools report this."""
        for _ in range(int(seconds * 10)):
            self.now_s += 0.1
            for name, link in self._links.items():
                link.take_changes()
                link.version_there = link.version
                self._roster.members[name].ready = True
            if self._gateway is not None:
                self._gateway.take_changes()
                self._gateway.version_there = self._gateway.version
            for held in self._roster.sessions.values():
                held.left_pool = ""
                if held.capture:
                    held.captured = Captured(held.incarnation, "running", {"video": "tcp://127.0.0.1:1"})
            for pool in self._roster.of("pool"):
                sessions = {name: Served(1, "running", 30.0, 5.0, p99_ms, 9) for name in pool.sessions}
                busy = cpu_percent if len(sessions) > 1 else 0.0
                pool.report = PoolReport(1, "", "ready", "tcp://127.0.0.1:2", cpu_percent=busy, sessions=sessions)
            self._decide()

    def sizes(self) -> list[int]:
        return sorted(len(pool.sessions) for pool in self._roster.of("pool"))


@pytest.fixture
def decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Decisions]:
    return lambda pools: Decisions(tmp_path, monkeypatch, pools)


@pytest.mark.parametrize("load", [{"cpu_percent": 95.0}, {"p99_ms": 250.0}], ids=["use", "p99"])
def test_overloaded_pool_gets_another(decisions: Callable[[str], Decisions], load: dict[str, float]) -> None:
    directory = decisions("sessions = 4\nuse = 0.9\np99_ms = 200")
    directory.pass_time(3)
    assert directory.sizes() == [3]
    directory.pass_time(9, **load)  # not for a moment's sake
    assert directory.sizes() == [3]
    directory.pass_time(3, **load)
    assert directory.sizes() == [1, 2]
    moved = [held for held in directory._roster.sessions.values() if held.moves]
    assert [held.moves for held in moved] == [1]
    # The pool that is left has two; with a third as busy there is no one left to take from it for less.
    directory.pass_time(12)
    assert directory.sizes() == [1, 2]


def test_pools_are_limited_by_the_plan(decisions: Callable[[str], Decisions]) -> None:
    directory = decisions("sessions = 4\nuse = 0.9\nmost = 1")
    directory.pass_time(3)
    directory.pass_time(30, cpu_percent=99.0)
    assert directory.sizes() == [3]


def test_idle_pool_is_stopped_down_to_the_minimum(decisions: Callable[[str], Decisions]) -> None:
    directory = decisions("sessions = 4\nfewest = 1\nidle_s = 20")
    directory.pass_time(3)
    directory._add_pool()
    directory.pass_time(19)
    assert directory.ended == []
    directory.pass_time(3)
    assert set(directory.ended) == {"pool-3"}  # after a pool and a capture


def test_spare_pools_wait_for_recovery_after_a_loss(
    decisions: Callable[[str], Decisions],
) -> None:
    directory = decisions("sessions = 4\nfewest = 2")
    directory.pass_time(3)
    assert len(directory.sizes()) == 2
    lost = next(pool for pool in directory._roster.of("pool") if pool.sessions)
    hit = directory._roster.drop(lost, "it died")
    del directory._links[lost.name]
    directory._lost_s = directory.now_s
    directory.pass_time(5)
    assert directory.sizes() == [3]  # those of the lost one, where there is room already
    for held in hit:
        held.gap = ""  # predicted again
    directory.pass_time(0.1)
    assert directory.sizes() == [0, 3]


def test_an_order_names_only_what_has_changed(decisions: Callable[[str], Decisions]) -> None:
    directory = decisions("sessions = 4")
    directory.pass_time(1)
    member = directory._roster.of("capture")[0]
    link = directory._links[member.name]

    def current() -> tuple[set[str] | None, int, tuple[str, ...]]:
        order = msgspec.json.decode(
            member_order(directory._roster, member, link, {}, ()), type=MemberOrder[CaptureTask]
        )
        named = None if order.tasks is None else {task.config.session for task in order.tasks}
        return named, order.since, order.gone

    before = link.version
    assert current()[0] is None
    link.touch("s-1")
    assert current() == ({"s-1"}, before, ())
    # No answer came: the actor may have another version.
    link.touch("s-2")
    assert current() == ({"s-1", "s-2", "s-3"}, FULL, ())
    link.version_there = link.version
    member.sessions.remove("s-1")
    link.touch("s-1")
    assert current() == (set(), link.version - 1, ("s-1",))
