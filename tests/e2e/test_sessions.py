"""Several sessions on one inference process: each with its own workers and numbers, none disturbs another."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from mien.install import SAMPLE
from mien.messages import Prediction
from mien.stream.bus.subscriber import Subscriber
from tests.e2e.conftest import command
from tests.ports import free_ports

TIMEOUT_S = 240.0
NAMES = ("a", "b", "c", "d")
pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.assets, pytest.mark.timeout(600)]


def test_four_sessions_on_one_inference_process(tmp_path: Path) -> None:
    """Each a voice of its own: audio workers are light, and their process is one each."""
    ports, processes = {}, []
    for name in NAMES:
        ports[name] = free_ports()
        settings = f'session = "{name}"\nbus.port = {ports[name]}\naudio.source = "{SAMPLE}"\nclip.loop = true\n'
        (tmp_path / f"{name}.toml").write_text(settings)
    files = {name: str(tmp_path / f"{name}.toml") for name in NAMES}
    also = [argument for name in NAMES[1:] for argument in ("--also", files[name])]
    try:
        processes = [
            subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for line in (
                command("infer", "-c", files["a"], *also),
                *(command("capture", "audio", "-c", files[name]) for name in NAMES),
            )
        ]
        received: dict[str, list[Prediction]] = {name: [] for name in NAMES}
        with Subscriber(f"tcp://127.0.0.1:{ports['a']}") as subscriber:
            deadline_s = time.monotonic() + TIMEOUT_S
            while any(sum("audio" not in p.absent for p in received[name]) < 40 for name in NAMES):
                assert time.monotonic() < deadline_s, {name: len(received[name]) for name in NAMES}
                assert all(process.poll() is None for process in processes)
                for prediction in subscriber.wait(0.2):
                    received[prediction.session].append(prediction)
            assert subscriber.lost == 0
            # One of them loses its worker and reports it; the others continue.
            processes[4].kill()
            others = {name: len(received[name]) for name in NAMES[:3]}
            while "audio" not in received["d"][-1].absent or any(len(received[n]) < others[n] + 20 for n in others):
                assert time.monotonic() < deadline_s
                for prediction in subscriber.wait(0.2):
                    received[prediction.session].append(prediction)
        for name in NAMES:
            runs = {p.run for p in received[name]}
            assert len(runs) == 1
            seqs = [p.seq for p in received[name]]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert all("audio" not in p.absent for p in received["a"][-20:])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def test_duplicate_session_names_and_ports_are_refused(tmp_path: Path) -> None:
    for other, message in (('session = "default"\nbus.port = 6100\n', "name"), ('session = "x"\n', "address")):
        path = tmp_path / "other.toml"
        path.write_text(other)
        line = command("infer", "--also", str(path))
        ran = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 2
        assert f"two sessions have the {message}" in ran.stderr
