"""What every process has in common."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mien.errors import MienError
from mien.stream.processes.child import environment_of, open_log
from mien.stream.processes.priority import set_background


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of single threads are Linux's")
def test_priority_is_lowered_for_one_or_most_threads() -> None:
    """In a process of its own: a lowered priority cannot be raised again."""
    code = (
        "import os, threading\n"
        "from mien.stream.processes.priority import lower_priority, threads\n"
        "look = lambda: os.getpriority(os.PRIO_PROCESS, 0)\n"
        "seen, running, go_on = [look()], threading.Event(), threading.Event()\n"
        "def one():\n"
        "    lower_priority(thread=True); seen.append(look())\n"
        "def other():\n"
        "    running.set(); go_on.wait(10); seen.append(look())\n"
        "first = threading.Thread(target=one); first.start(); first.join()\n"
        "before = threads()\n"
        "second = threading.Thread(target=other); second.start(); running.wait(10)\n"
        "lower_priority(except_for=before); seen.append(look())\n"
        "go_on.set(); second.join()\n"
        "lower_priority()\n"
        "print(*seen, look())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    begun, one, unchanged, other, at_last = map(int, ran.stdout.split())
    assert unchanged == begun
    assert one == other == at_last == max(begun, 5)


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="this system shares the processor among processes"
)
@pytest.mark.parametrize("leads", [True, False])
def test_session_leader_lowers_its_autogroup(leads: bool) -> None:
    code = (
        "from mien.stream.processes.priority import lower_priority\n"
        "group = lambda: open('/proc/self/autogroup').read().split()[-1]\n"
        "before = group(); lower_priority(); print(before, group())\n"
    )
    # One that does not lead is in a session that its parent does: of this test's own, since that may be a terminal's.
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    ran = subprocess.run(
        [sys.executable, "-c", code if leads else parent],
        start_new_session=True, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    before, after = map(int, ran.stdout.split())
    assert after == (max(before, 5) if leads else before)


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="this system shares the processor among processes"
)
def test_another_process_is_lowered_and_restored() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        levels = []
        for background in (True, True, False):
            set_background(process.pid, background=background)
            levels.append(int(Path(f"/proc/{process.pid}/autogroup").read_text().split()[-1]))
        assert levels == [10, 10, 0]
    finally:
        process.communicate(b"\n")
    set_background(process.pid, background=True)  # one that has ended is no error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make a file of another user")
def test_foreign_log_is_replaced_or_reported() -> None:
    """As `sudo mien run` leaves it. Away from pytest's folders, which are root's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "default-video.log"
        log.write_bytes(b"root's")
        log.chmod(0o600)
        folder.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(MienError, match="permission denied; remove it, or set XDG_STATE_HOME"):
                open_log(log)
        finally:
            os.seteuid(0)
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
        try:
            open_log(log).close()
        finally:
            os.seteuid(0)
        assert log.stat().st_uid == 65534


def test_huge_pages_are_for_the_video_worker_and_leave_the_user_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert environment_of("video")["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "GLIBC_TUNABLES" not in environment_of("text")
    mine = "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=0"
    monkeypatch.setenv("GLIBC_TUNABLES", mine)
    assert environment_of("video")["GLIBC_TUNABLES"] == f"glibc.malloc.hugetlb=1:{mine}"
    assert environment_of("text")["GLIBC_TUNABLES"] == mine
