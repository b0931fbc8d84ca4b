"""What every process has in common."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of single threads are Linux's")
def test_giving_way_is_of_one_thread_or_of_all_but_some() -> None:
    """In a process of its own: what was given way cannot be taken back."""
    code = (
        "import os, threading\n"
        "from mien.stream.process import give_way, threads\n"
        "look = lambda: os.getpriority(os.PRIO_PROCESS, 0)\n"
        "said, running, go_on = [look()], threading.Event(), threading.Event()\n"
        "def one():\n"
        "    give_way(thread=True); said.append(look())\n"
        "def other():\n"
        "    running.set(); go_on.wait(10); said.append(look())\n"
        "first = threading.Thread(target=one); first.start(); first.join()\n"
        "before = threads()\n"
        "second = threading.Thread(target=other); second.start(); running.wait(10)\n"
        "give_way(spared=before); said.append(look())\n"
        "go_on.set(); second.join()\n"
        "give_way()\n"
        "print(*said, look())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    begun, one, spared, other, at_last = map(int, ran.stdout.split())
    assert spared == begun
    assert one == other == at_last == max(begun, 5)
