"""Unattended operation: JSON logs, metrics, and the systemd unit."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mien.install import SAMPLE
from tests.e2e.conftest import command
from tests.needs import run_program
from tests.ports import free_ports

UNIT = Path(__file__).resolve().parents[2] / "configs" / "mien.service"
TIMEOUT_S = 180.0
pytestmark = pytest.mark.e2e


def options_of_the_unit() -> list[str]:
    line = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert line is not None
    program, *options = shlex.split(line.group(1))
    assert program.endswith("/mien")
    return options


def test_systemd_unit_uses_existing_options(tmp_path: Path) -> None:
    ran = run_program(command(*options_of_the_unit(), "--clip", str(tmp_path / "none.mp4")))
    assert ran.returncode == 3
    assert "does not exist" in ran.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    broken = tmp_path / UNIT.name
    broken.write_text(UNIT.read_text().replace("Restart=always", "Restart=sometimes"))
    assert any("sometimes" in line for line in complaints(broken)), "it would have been found"
    assert complaints(UNIT) == []


def complaints(unit: Path) -> list[str]:
    ran = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    return [line for line in ran.stderr.splitlines() if unit.name in line and "not executable" not in line]


def health(port: int) -> tuple[int, dict[str, Any]]:
    """Status code and JSON; 0 and an empty dict if there is no server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, {}


@pytest.mark.assets
@pytest.mark.timeout(400)
def test_the_log_is_json_and_health_answers(port: int, tmp_path: Path) -> None:
    served, log = free_ports(), tmp_path / "log"
    options = ["--asr", "none", "--loop", "--port", str(port), "--session", "service", "--metrics", str(served), "-q"]
    with log.open("wb") as errors:
        session = subprocess.Popen(
            command("run", "--clip", str(SAMPLE), "--log-json", *options), stdout=subprocess.DEVNULL, stderr=errors
        )
    try:
        deadline_s, rate = time.monotonic() + TIMEOUT_S, 0.0
        condition: dict[str, Any] = {}
        while rate == 0.0:
            assert time.monotonic() < deadline_s
            assert session.poll() is None, log.read_text()
            time.sleep(0.2)
            code, condition = health(served)
            assert (code == 503) == (condition.get("verdict") == "down")
            rate = condition.get("predictions_per_s", 0.0)
        assert condition["session"] == "service"
        time.sleep(1.0)
    finally:
        session.terminate()
        session.wait(30)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["session"] for line in lines} == {"service"}
    started = {line["worker"] for line in lines if line["event"] == "state" and line["state"] in ("ready", "running")}
    assert {"inference", "video", "audio"} <= started
    assert lines[-1]["event"] == "summary"
    assert lines[-1]["predictions"] > 0
    assert health(served) == (0, {}), "the server still runs"
