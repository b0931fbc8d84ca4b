"""A pool of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mien.stream.offline.pool import worker_pool

_MAIN = """
import os, sys, time
from mien.stream.offline.pool import worker_pool

def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    with worker_pool(2) as pool:
        list(pool.map(work, [600, 600]))
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(_MAIN, encoding="utf-8")
    main = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    try:
        found = [psutil.Process(int(main.stdout.readline())) for _ in range(2)]
    finally:
        main.kill()
        main.wait()
    main.stdout.close()
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive


def _interrupt_itself() -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return os.getpid()


@pytest.mark.skipif(os.name != "posix", reason="a console's Ctrl-C is something else on Windows")
def test_workers_leave_ctrl_c_to_the_main_process() -> None:
    with worker_pool(1) as pool:
        assert len({pool.submit(_interrupt_itself).result(60) for _ in range(3)}) == 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
