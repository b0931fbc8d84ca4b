"""The drills that print figures, in short: they run, do what they say, and judge. Their limits are not tested here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import command

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.assets,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals"),
]


def bench(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """A report's results, and what was printed on the way."""
    report = tmp_path / "report.json"
    ran = subprocess.run(
        command("bench", *arguments, "--json", str(report)), capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr
    results: dict[str, Any] = json.loads(report.read_text())["results"]
    return results, ran.stderr


def test_chaos_injects_faults_and_tells_what_they_did(tmp_path: Path) -> None:
    results, said = bench(tmp_path, "chaos", "--minutes", "0.5", "--every", "10")
    assert len(results["faults"]) >= 2
    for outcome in results["faults"]:
        assert outcome["fault"] in said
        assert outcome["memory_mb"] >= 0
        if outcome["fault"].startswith(("kill", "hang")) and "inference" not in outcome["fault"]:
            assert outcome["masked_s"] is not None
            assert outcome["reason"]
    assert results["predictions"] > 20
    assert set(results["holds"]) == {
        "every fault survived",
        "recovered p95 <= 5 s",
        "no process grows > 5 %",
        "every gap explained",
    }


def test_a_flood_is_counted_and_predictions_go_on(tmp_path: Path) -> None:
    results, _ = bench(tmp_path, "flood", "--seconds", "4")
    flood = results["flood of 10x"]
    assert flood["sent_per_s"] > 3 * results["unloaded"]["sent_per_s"]
    assert flood["latency_ms"]["n"] > 10
    assert flood["drops"]["superseded"] > 10
    assert results["memory ratio"] < 1.5


def test_a_subscriber_that_never_reads_costs_the_others_nothing(tmp_path: Path) -> None:
    results, _ = bench(tmp_path, "subscribers", "--seconds", "5")
    assert results["published"] > 20
    # Of 150: on a machine that is busy, one or two are under way when it ends.
    assert results["share of predictions, worst fast subscriber"] >= 0.95
    assert results["age at slow subscribers_ms"]["n"] > 20
