"""Files over a cluster: the same bytes as on one machine, also when a node is lost in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fleet.conftest import MIEN, Marked
from tests.fleet.test_failures import Driver

pytestmark = [pytest.mark.fleet, pytest.mark.assets, pytest.mark.timeout(500)]
ROOT = Path(__file__).parents[2]
CLIPS = int(os.environ.get("MIEN_TEST_CLIPS", "9"))


def corpus(folder: Path, clips: int = CLIPS) -> Path:
    """A folder of clips with labels, one of which cannot be read: pieces of the sample."""
    folder.mkdir()
    lines = ["file,text,sentiment,emotion,speaker,split,start,end"]
    (folder / "sample.mp4").write_bytes((ROOT / "src" / "mien" / "sample.mp4").read_bytes())
    (folder / "broken.mp4").write_bytes(b"no clip")
    for number in range(clips):
        begin = number % 12 + number / 100
        lines.append(f"sample.mp4,word {number},{number % 3 - 1},happy,s{number},train,{begin:.2f},{begin + 1.5:.2f}")
    lines.append("broken.mp4,nothing,0,neutral,x,train,,")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--asr", "none", "--hop", "2", "--engine", "onnx", "--json"],
        ["eval", "--asr", "none", "--engine", "onnx", "--json", "--split", "all"],
    ],
    ids=lambda command: command[0],
)
def test_cluster_predictions_are_byte_equal(marked: Marked, tmp_path: Path, command: list[str]) -> None:
    clips = corpus(tmp_path / "clips", 3)
    for copy in ("again.mp4", "once-more.mp4"):
        (clips / copy).write_bytes((clips / "sample.mp4").read_bytes())
    driver = Driver(marked, tmp_path, nodes=2, cpus=1.0)
    try:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        predictions = [
            subprocess.run(
                [*MIEN, command[0], str(clips), *command[1:], *where],
                env=marked.environment | token, check=True, capture_output=True, timeout=200,
            ).stdout
            for where in ([], ["--ray", driver("address")])
        ]  # fmt: skip
        assert predictions[0] == predictions[1]
        assert predictions[0].count(b"\n") > 3
    finally:
        driver.close()
    assert marked.wait_gone(30) == []


def test_cluster_makes_the_same_dataset(marked: Marked, tmp_path: Path) -> None:
    clips = corpus(tmp_path / "clips")
    local = [*MIEN, "extract", str(clips), "--out", str(tmp_path / "local"), "--asr", "none", "--jobs", "1"]
    subprocess.run(local, env=marked.environment, check=True, capture_output=True)
    driver = Driver(marked, tmp_path, cpus=1.0)
    try:
        environment = {
            **marked.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        }  # fmt: skip
        spread = [*MIEN, "extract", str(clips), "--out", str(tmp_path / "spread"), "--asr", "none"]
        process = subprocess.Popen(
            [*spread, "--ray", driver("address")], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        killer = threading.Thread(target=kill_half_way, args=(driver, tmp_path / "spread"))
        killer.start()
        out, err = process.communicate(timeout=400)
        killer.join()
        assert process.returncode == 0, err[-3000:]
        assert "skipped 1:" in out
        made = contents(tmp_path / "spread")
        assert made == contents(tmp_path / "local")
        assert made
    finally:
        driver.close()
    assert marked.wait_gone(30) == []


def kill_half_way(driver: Driver, out: Path) -> None:
    """A node, once the work has begun."""
    deadline_s = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline_s:
        time.sleep(0.2)
    time.sleep(6.0)
    print(f"killed {driver('kill_node', 2)} processes of a node", file=sys.stderr)
