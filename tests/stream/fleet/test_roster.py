"""Placement of sessions: balanced, by label, never on a drained or unresponsive node."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.stream.fleet.plan import Plan, read_plan
from mien.stream.fleet.roster import Kind, Member, Node, Roster, demand


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "fleet.toml"
    path.write_text(
        "[capture]\ncpus = 0.5\nsessions = 2\n[pools]\nsessions = 2\nmost = 2\n"
        "[[sessions]]\npattern = 's-{n}'\ncount = 3\nsource = 'synthetic'\n"
        "[[sessions]]\nname = 'usb'\nsource = '0'\nplace = {host = 'b'}\n"
    )
    return read_plan(path)


def roster_of(plan: Plan) -> Roster:
    roster = Roster(plan)
    for name in ("a", "b"):
        roster.nodes[name] = Node(name, f"10.0.0.{ord(name)}", {"host": name}, cpus=2.0, gpus=0.0)
    return roster


def hire(roster: Roster, name: str, kind: Kind, node: str, room: int = 2, cpus: float = 1.0) -> Member:
    member = Member(name, kind, node, room, cpus, 0.0, ready=True)
    roster.members[name] = member
    return member


def test_capture_goes_to_the_least_loaded_node(plan: Plan) -> None:
    roster = roster_of(plan)
    member = hire(roster, "capture-1", "capture", "a")
    member.sessions = {"s-1"}
    roster.sessions["s-1"].capture = "capture-1"
    choice = roster.choose_capture(roster.sessions["s-2"])
    assert isinstance(choice, tuple)
    assert choice[0].id == "b"


def test_lost_captures_resume_where_already_running(plan: Plan) -> None:
    roster = roster_of(plan)
    member = hire(roster, "capture-1", "capture", "a")
    member.sessions = {"s-1"}
    held = roster.sessions["s-2"]
    held.moves = 1
    assert roster.choose_capture(held) is member
    member.sessions = {"s-1", "s-3"}  # it has no room
    choice = roster.choose_capture(held)
    assert isinstance(choice, tuple)
    assert choice[0].id == "b"


def test_pinned_node_is_kept_or_reported_missing(plan: Plan) -> None:
    roster = roster_of(plan)
    choice = roster.choose_capture(roster.sessions["usb"])
    assert isinstance(choice, tuple)
    assert choice[0].id == "b"
    roster.nodes["b"].drained = True
    assert "drained" in str(roster.choose_capture(roster.sessions["usb"]))
    del roster.nodes["b"]
    assert "nothing in the cluster has host=b" in str(roster.choose_capture(roster.sessions["usb"]))


def test_lack_of_capacity_is_reported_and_requested(plan: Plan) -> None:
    roster = roster_of(plan)
    hire(roster, "other-1", "pool", "a", cpus=2.0)
    hire(roster, "other-2", "pool", "b", cpus=2.0)
    held = roster.sessions["s-1"]
    held.problem = str(roster.choose_capture(held))
    assert "0.5 CPUs" in held.problem
    assert {"CPU": 0.5} in demand(roster)
    held.problem = ""
    assert demand(roster) == []


def test_lost_pool_releases_its_sessions(plan: Plan) -> None:
    roster = roster_of(plan)
    first, second = hire(roster, "pool-1", "pool", "a"), hire(roster, "pool-2", "pool", "b")
    held = roster.sessions["s-1"]
    held.pool, first.sessions = "pool-1", {"s-1"}
    assert roster.drop(first, "the node a is lost") == [held]
    assert (held.pool, held.gap, held.moves) == ("", "the node a is lost", 1)
    assert roster.choose_pool(held) is second
    second.sessions = {"s-2", "s-3"}
    assert roster.choose_pool(held) is None
    roster.nodes["a"].suspect = True
    found = roster.choose_pool_node()
    assert not isinstance(found, str)
    assert found.id == "b"


def test_moved_session_waits_for_its_pool_to_release_it(plan: Plan) -> None:
    roster = roster_of(plan)
    first, second = hire(roster, "pool-1", "pool", "a"), hire(roster, "pool-2", "pool", "b")
    held = roster.sessions["s-1"]
    held.pool, first.sessions = "pool-1", {"s-1"}
    roster.leave_pool(held, "moved")
    assert (held.pool, held.left_pool, first.sessions) == ("", "pool-1", set())
    assert roster.choose_pool(held) is second
    roster.drop(first, "")
    assert held.left_pool == ""


def test_a_session_stays_where_no_other_pool_can_take_it(plan: Plan) -> None:
    roster = roster_of(plan)
    first = hire(roster, "pool-1", "pool", "a")
    held = roster.sessions["s-1"]
    held.pool, first.sessions = "pool-1", {"s-1"}
    assert roster.why_it_stays(held) == ""  # a pool can be started on b
    roster.nodes["b"].drained = True
    roster.nodes["a"].cpus = 1.0
    assert roster.why_it_stays(held) == "no node has 1 CPU free for a pool"
    roster.nodes["b"].drained = False
    hire(roster, "pool-2", "pool", "b").sessions = {"s-2", "s-3"}
    assert "pools.most" in roster.why_it_stays(held)
    roster.members["pool-2"].sessions = set()
    assert roster.why_it_stays(held) == ""
    assert held.avoid == ""


def test_pools_are_spread_and_bounded(plan: Plan) -> None:
    roster = roster_of(plan)
    hire(roster, "pool-1", "pool", "a")
    found = roster.choose_pool_node()
    assert not isinstance(found, str)
    assert found.id == "b"
    hire(roster, "pool-2", "pool", "b")
    assert "pools.most" in str(roster.choose_pool_node())
