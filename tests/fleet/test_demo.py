"""One machine: Ray embedded, clips at their pace, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import MIEN, Marked
from tests.ports import free_ports

pytestmark = [pytest.mark.fleet, pytest.mark.assets]
ROOT = Path(__file__).parents[2]
Mien = Callable[..., subprocess.CompletedProcess[str]]


def demo(folder: Path) -> Path:
    """The demo at a port of its own."""
    path = folder / "demo.toml"
    text = (ROOT / "configs" / "fleet" / "demo.toml").read_text(encoding="utf-8")
    assert "port = 5570" in text
    path.write_text(text.replace("port = 5570", f"port = {free_ports(1)}"), encoding="utf-8")
    return path


def test_the_demo_predicts_its_clips_and_ends(tmp_path: Path, mien: Mien, marked: Marked) -> None:
    ran = mien("fleet", "run", str(demo(tmp_path)), "--json")
    found = json.loads(ran.stdout)
    assert {session["state"] for session in found["sessions"]} == {"ended"}
    assert len(found["sessions"]) == 4
    # How many depends on the machine; that each clip was predicted all along does not.
    assert all(session["predictions"] > 20 for session in found["sessions"]), found["sessions"]
    assert marked.wait_gone() == []


def test_background_fleet_is_inspected_changed_and_stopped(tmp_path: Path, mien: Mien, marked: Marked) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        f"fleet = 'behind'\n[capture]\ncpus = 0.1\nsessions = 8\n[pools]\ncpus = 0.2\nfewest = 2\nsessions = 4\n"
        f"p99_ms = 100000\nuse = 1.0\n[gateway]\nport = {free_ports(1)}\n"
        "[[sessions]]\npattern = 's-{n}'\ncount = 3\nsource = 'synthetic:5'\n"
        "[[sessions]]\nname = 'nowhere'\nsource = 'synthetic:5'\nplace = {site = 'moon'}\n",
        encoding="utf-8",
    )
    mien("fleet", "run", str(path), "--detach")
    found = wait_for(mien, lambda states: states == {"s-1": "running", "s-2": "running", "s-3": "running"})
    nowhere = next(session for session in found["sessions"] if session["name"] == "nowhere")
    assert (nowhere["state"], "site=moon" in nowhere["note"]) == ("waiting", True)
    again = mien("fleet", "run", str(path), "--detach", check=False)
    assert (again.returncode, "runs already" in again.stderr) == (14, True), again.stderr
    before = next(session for session in found["sessions"] if session["name"] == "s-1")
    mien("fleet", "move", "s-1", "--fleet", "behind")
    found = wait_for(mien, lambda states: states["s-1"] == "running", lambda s: s["s-1"]["run"] > before["run"])
    after = next(session for session in found["sessions"] if session["name"] == "s-1")
    assert after["pool"] != before["pool"]
    assert mien("fleet", "move", "s-9", "--fleet", "behind", check=False).returncode == 14
    assert "no node is called" in mien("fleet", "drain", "moon", "--fleet", "behind", check=False).stderr
    shown = mien("fleet", "status", "behind", check=False)
    assert "site=moon" in " ".join(shown.stdout.split())
    mien("fleet", "stop", "behind")
    assert marked.wait_gone(30) == []


def wait_for(mien: Mien, *conditions: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The fleet, once its sessions (but the one that is nowhere) are so; the first is asked of states by name."""
    for _ in range(40):
        found: dict[str, Any] = json.loads(mien("fleet", "status", "behind", "--json", check=False).stdout)
        sessions = {session["name"]: session for session in found["sessions"] if session["name"] != "nowhere"}
        states = {name: session["state"] for name, session in sessions.items()}
        if conditions[0](states) and all(condition(sessions) for condition in conditions[1:]):
            return found
    raise AssertionError(found)


def test_ctrl_c_stops_a_local_fleet(tmp_path: Path, marked: Marked) -> None:
    process = subprocess.Popen(
        [*MIEN, "fleet", "run", str(demo(tmp_path))], env=marked.environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if " running on " in line:
            break
    process.send_signal(signal.SIGINT)
    out = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, "".join(lines) + out
    assert marked.wait_gone() == []
