"""The benchmark's own arithmetic, and small runs of the real thing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from mien.cli import _bench, _figures
from mien.engines.predictor import Predictor
from mien.errors import ConfigError, DataError
from mien.models.checkpoint import Checkpoint
from mien.stream.bench.benchmark import bench_bus, bench_single
from mien.stream.bench.engines import bench_engines
from mien.stream.bench.measurement import compare_reports, describe, ratio
from mien.stream.bench.streams import bench_multi, compare_batching, find_most_streams, measure_batches
from mien.stream.bench.synthetic import FRAME_HZ, synthetic_inputs


def test_percentiles_and_blocks() -> None:
    figures = describe(list(range(1, 1001)))
    assert figures["n"] == 1000
    assert (figures["p50"], figures["max"]) == (500.5, 1000.0)
    assert figures["p99"] == pytest.approx(990.01)
    assert figures["blocks"] == pytest.approx(np.arange(25.5, 1000, 50).tolist())
    assert describe([]) == {"n": 0}


def test_ratio_has_a_spread() -> None:
    assert ratio([2.0] * 20, [5.0] * 20) == {"ratio": 2.5, "p10": 2.5, "p90": 2.5}
    noisy = ratio([1.0, 2.0], [1.0, 2.0])
    assert noisy["p10"] < noisy["ratio"] == 1.0 < noisy["p90"]


def test_comparison_uses_figures_of_both_reports() -> None:
    base = {"infer": describe([1.0] * 100), "only here": describe([1.0]), "note": "text"}
    other = {"infer": describe([2.0] * 100), "deeper": {"infer": describe([1.0])}}
    assert compare_reports(base, other) == {"infer": {"ratio": 2.0, "p10": 2.0, "p90": 2.0}}


def test_synthetic_stream_keeps_the_rate_of_each_modality(checkpoint: Checkpoint) -> None:
    inputs = synthetic_inputs({spec.name: spec for spec in checkpoint.specs}, 2 * FRAME_HZ)
    changes = {
        spec.name: sum(
            not np.array_equal(a[f"{spec.name}.features"], b[f"{spec.name}.features"])
            for a, b in itertools.pairwise(inputs)
        )
        for spec in checkpoint.specs
    }
    assert changes["vision"] == 2 * FRAME_HZ - 1
    assert changes["audio"] == pytest.approx(20, abs=2)
    assert 1 <= changes["text"] <= 3
    assert all(inputs[0][f"{name}.mask"].all() for name in ("audio", "vision"))


@pytest.mark.long
def test_engines_take_turns(checkpoint: Checkpoint, compiled: Path) -> None:
    report = bench_engines(checkpoint, seconds=0.1, cache=compiled)
    figures = report["engines"]
    assert {"whole torch-fp32", "rolling torch-fp32", "whole onnx-fp32", "rolling onnx-fp32"} <= figures.keys()
    assert len({values["n"] for values in figures.values()}) == 1
    assert report["speedup over whole torch-fp32"]["whole torch-fp32"]["ratio"] == 1.0
    assert "tensorrt" in report["refused"] or "whole tensorrt-fp32" in figures
    speedups = report["speedup over whole torch-fp32"].values()
    assert all(speedup["p10"] <= speedup["ratio"] <= speedup["p90"] for speedup in speedups)


@pytest.mark.long
def test_single_and_multi(checkpoint: Checkpoint, compiled: Path) -> None:
    predictor = Predictor(checkpoint, "onnx", cache=compiled)
    single = bench_single(predictor, seconds=0.1)
    stages = single["stages_ms"]
    assert sum(stages[name]["p50"] for name in ("decode", "assemble", "infer", "publish")) <= 2 * stages["total"]["p50"]
    assert single["achieved_fps"] > 0
    multi = bench_multi(predictor, streams=2, seconds=1.0)
    assert multi["offered_fps"] == 2 * FRAME_HZ
    assert multi["latency_ms"]["n"] + multi["drops"]["overtaken"] > FRAME_HZ
    assert multi["latency_ms"]["p50"] > 0
    assert multi["age_ms"].keys() == predictor.specs.keys()


def test_most_streams_depends_on_batches_and_memory(checkpoint: Checkpoint, compiled: Path) -> None:
    predictor = Predictor(checkpoint, "onnx", cache=compiled)
    reports: list[dict[str, object]] = []
    report = find_most_streams(lambda streams: bench_multi(predictor, streams, 0.3), most=2, report=reports.append)
    assert [trial["streams"] for trial in report["trials"]] == sorted(trial["streams"] for trial in report["trials"])
    assert len(reports) >= len(report["trials"]) > 0
    if report["most_streams"] > 1:  # a machine that is busy may hold none
        batching = compare_batching(predictor, 2, 0.3)
        assert batching["one by one"]["offered_fps"] == 2 * FRAME_HZ


def test_batches_cost_by_step(checkpoint: Checkpoint, compiled: Path) -> None:
    table = measure_batches(Predictor(checkpoint, "onnx", cache=compiled), [1, 2], rounds=3)["batches"]
    for row in table.values():
        assert row["windows_per_s"] > 0
        assert row["steps_us"].keys() == {"push", "look", "model"}
        assert row["model_ms"]["n"] == 3


def test_bus() -> None:
    report = bench_bus(seconds=0.3)
    assert report["features_ms"]["p50"] > 0
    assert 0 < report["received"] <= report["sent"]


def test_reports_are_written_shown_and_compared(
    checkpoint: Checkpoint, compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = Predictor(checkpoint, "onnx", cache=compiled)
    report = _bench.with_surroundings("single", lambda: bench_single(predictor, seconds=0.1))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(report))
    assert report["machine"]
    assert report["versions"]["numpy"] == np.__version__
    _figures.show(report)
    assert "stages_ms infer" in capsys.readouterr().out
    _figures.show_comparison(_bench.read_report(path), report)
    assert "no difference shown" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"format": 99, "results": {}}'])
def test_invalid_reports_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="report"):
        _bench.read_report(path)


def test_figures_of_every_shape_become_tables(
    checkpoint: Checkpoint, compiled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No braces, nothing cut where a terminal is narrow, and names with brackets as they are."""
    monkeypatch.setenv("COLUMNS", "40")
    predictor = Predictor(checkpoint, "onnx", cache=compiled)
    results = find_most_streams(lambda streams: bench_multi(predictor, streams, 0.3), most=2) | {
        "age at slow subscribers_ms": describe([]),
        "gains": {"[bold]": ratio([1.0], [3.0])},
        "holds": {"every one": True},
        "unloaded": {"drops": {}, "rss_mb": None, "latency": describe([1.0])},
        "processes": {"video [1]": {"cpu_percent": 7.25, "rss_mb": 4321.5}},
    }
    _figures.show(_bench.with_surroundings("multi", lambda: results))
    shown = capsys.readouterr().out
    assert "{" not in shown
    assert "…" not in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["gains", "[bold]", "3.00", "3.00", "3.00"] in rows
    assert ["video", "[1]", "7.25", "4321.5"] in rows
    assert ["age", "at", "slow", "subscribers_ms", "-", "-", "-", "-", "-", "0"] in rows
    assert "holds every one: yes" in shown
    assert "unloaded rss_mb: -" in shown
    header = next(row for row in rows if row[:1] == ["trials"])
    for trial, row in zip(results["trials"], (row for row in rows[rows.index(header) + 1 :]), strict=False):
        assert row[1] == str(trial["streams"])
        assert f"{trial['latency_ms']['p99']:.2f}" in row


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "latency.png"
    _bench.draw([(0.0, 5.0), (1.0, 7.0)], path, "two predictions")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="nothing to plot"):
        _bench.draw([], path, "none")


@pytest.mark.parametrize("text", ["0", "-1", "soon"])
def test_soak_takes_minutes(text: str) -> None:
    with pytest.raises(ConfigError, match="minutes"):
        _bench.minutes(text)
