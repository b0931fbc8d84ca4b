"""What `mien bench` runs, prints, draws and compares."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Column, Table

from mien.config import load_config
from mien.errors import ConfigError, DataError
from mien.stream.bench.measurement import compare_reports, load_per_core, surroundings

_FORMAT = 1
_PERCENTILES = ("p50", "p90", "p95", "p99", "max")


def with_surroundings(kind: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run, and say where, with what, and how busy the machine was."""
    # A thread that spins for work takes the core that another process needs. Read when libraries are loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    before = load_per_core()
    process = psutil.Process()
    process.cpu_percent()
    results = run()
    if "processes" not in results:
        memory_mb = round(process.memory_info().rss / 2**20, 1)
        results["processes"] = {"bench": {"cpu_percent": process.cpu_percent(), "rss_mb": memory_mb}}
    load = {"before": before, "after": load_per_core()}
    return {"format": _FORMAT, "kind": kind, "results": results, "load_per_core": load, **surroundings()}


def run_engines(checkpoint: str, seconds: float) -> dict[str, Any]:
    """`mien bench engines`."""
    from mien.models.checkpoint import load_checkpoint
    from mien.stream.bench.contest import bench_engines

    return bench_engines(load_checkpoint(checkpoint), seconds)


def run_single(checkpoint: str, engine: str, seconds: float) -> dict[str, Any]:
    """`mien bench single`."""
    from mien.stream.bench.benchmark import bench_single

    return bench_single(_predictor(checkpoint, engine), seconds)


def run_multi(checkpoint: str, engine: str, streams: int | None, seconds: float) -> dict[str, Any]:
    """`mien bench multi`: a fixed number of streams, or the most that hold."""
    from mien.stream.bench.streams import bench_multi, find_most_streams

    predictor = _predictor(checkpoint, engine)
    if streams is not None:
        return {"model": predictor.id, **bench_multi(predictor, streams, seconds)}
    console = Console(stderr=True, highlight=False)

    def report(trial: dict[str, Any]) -> None:
        console.print(
            f"{trial['streams']:4} streams  p99 {trial['latency_ms'].get('p99', float('nan')):7.1f} ms  "
            f"{'holds' if trial['holds'] else 'does not hold'}{'' if trial['batched'] else ', one by one'}"
        )

    return find_most_streams(predictor, seconds, report=report)


def run_bus(seconds: float) -> dict[str, Any]:
    """`mien bench bus`."""
    from mien.stream.bench.benchmark import bench_bus

    return bench_bus(seconds)


def run_bridges(seconds: float) -> dict[str, Any]:
    """`mien bench bridges`."""
    from mien.stream.bench.bridges import measure_bridges

    return measure_bridges(seconds)


def run_session(
    clip: Path | None,
    asr: str | None,
    engine: str,
    checkpoint: str,
    seconds: float,
    fps: float,
    plot: Path | None,
    *,
    soak: bool,
) -> dict[str, Any]:
    """`mien bench paced` and `mien bench soak`: all processes, on a clip in a loop, filmed at `fps` (0: its own)."""
    from mien.stream.bench.benchmark import free_port
    from mien.stream.bench.paced import record, slopes, summarise, timeline
    from mien.stream.session import plan_session

    source = str(clip) if clip else str(Path(__file__).parents[1] / "sample.mp4")
    overrides = {
        "video.source": source,
        "audio.source": source,
        "clip.loop": True,
        "clip.fps": fps,
        "text.asr": asr,
        "inference.engine": engine,
        "inference.checkpoint": checkpoint,
        "bus.port": _four_ports(free_port),
        "session": "bench",
    }
    session = plan_session(load_config(overrides=overrides))
    stopping = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopping.set())
    try:
        recording, model = record(session, seconds, stopping)
    finally:
        signal.signal(signal.SIGINT, before)
    report: dict[str, Any] = {"model": model, "clip": session.label, "workers": list(session.workers)}
    report |= summarise(recording, fps or _frame_rate(source))
    if soak:
        report["growth"] = slopes(recording, seconds)
    if plot is not None:
        draw(timeline(recording), plot, f"{session.label}, {model}, {surroundings()['machine']}")
    return report


def minutes(text: str) -> float:
    """The operand of `soak`.

    Raises:
        ConfigError: it is no positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ConfigError(f"mien bench soak takes minutes, not {text!r}")
    return value


def read_report(path: Path) -> dict[str, Any]:
    """A report that `--json` wrote.

    Raises:
        DataError: it is none.
    """
    try:
        report = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not a report of mien bench: {error}") from error
    if not isinstance(report, dict) or report.get("format") != _FORMAT or "results" not in report:
        raise DataError(f"{path} is not a report of this mien bench; write one with --json")
    return report


def run_watchers(clip: Path | None, engine: str, checkpoint: str, seconds: float) -> dict[str, Any]:
    """`mien bench watchers`: what it costs to be watched, in three rounds of turns."""
    from mien.stream.bench.benchmark import free_port
    from mien.stream.bench.watchers import measure_watchers
    from mien.stream.session import SAMPLE, plan_session

    source = str(clip or SAMPLE)
    overrides = {
        "video.source": source,
        "audio.source": source,
        "clip.loop": True,
        "inference.engine": engine,
        "inference.checkpoint": checkpoint,
        "bus.port": _four_ports(free_port),
        "session": "bench",
    }
    stopping = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopping.set())
    try:
        return measure_watchers(plan_session(load_config(overrides=overrides)), seconds, 3, stopping)
    finally:
        signal.signal(signal.SIGINT, before)


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    console = Console(highlight=False)
    tables: list[tuple[str, dict[str, Any]]] = []
    plain: list[tuple[str, Any]] = []
    _sort_out(report["results"], "", tables, plain)
    if tables:
        table = Table(
            report["kind"], *(Column(p, justify="right") for p in (*_PERCENTILES, "n")), box=None, pad_edge=False
        )
        for path, figures in tables:
            cells = [f"{figures[p]:.3f}" if p in figures else "-" for p in _PERCENTILES]
            table.add_row(path, *cells, str(figures["n"]))
        console.print(table)
        console.print("milliseconds, warm-up left out", style="dim")
    for path, value in plain:
        console.print(f"{path}: {value}", markup=False, soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    load = report["load_per_core"]
    console.print(f"\n{report['machine']}; Python {report['python']}; {versions}", markup=False, soft_wrap=True)
    console.print(f"commit {report['commit']}; load per core {load['before']} -> {load['after']}", markup=False)
    if (load["before"] or 0) > 0.5:
        console.print("the machine was busy with other work: trust ratios of one run, not the times", style="yellow")


def show_comparison(base: dict[str, Any], other: dict[str, Any]) -> None:
    """Ratios of two reports: how many times as long the second one takes."""
    console = Console(highlight=False)
    table = Table("second / first", *(Column(name, justify="right") for name in ("ratio", "p10", "p90", "")), box=None)
    ratios = compare_reports(base["results"], other["results"])
    for path, figures in ratios.items():
        verdict = "slower" if figures["p10"] > 1 else "faster" if figures["p90"] < 1 else "no difference shown"
        table.add_row(path, *(f"{figures[name]:.3f}" for name in ("ratio", "p10", "p90")), verdict)
    console.print(table)
    if not ratios:
        console.print("the two reports have no measurement in common")
    if base["machine"] != other["machine"]:
        console.print("the reports are from different machines", style="yellow")


def draw(points: list[tuple[float, float]], path: Path, title: str) -> None:
    """Distribution and timeline of the software latency, as a PNG.

    Raises:
        DataError: there is nothing to draw.
    """
    if not points:
        raise DataError("no prediction had a latency; there is nothing to plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at_s, latency_ms = zip(*points, strict=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), width_ratios=(1, 2), layout="constrained")
    left.hist(latency_ms, bins=60, color="tab:blue")
    left.set(xlabel="frame read to prediction published, ms", ylabel="predictions")
    right.plot(at_s, latency_ms, ".", markersize=3, color="tab:blue")
    right.axhline(33.3, color="tab:red", linewidth=1, label="one frame at 30 fps")
    right.set(xlabel="s", ylabel="ms", ylim=(0, None))
    right.legend(loc="upper right")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _predictor(checkpoint: str, engine: str) -> Any:
    from mien.engines.predictor import Predictor
    from mien.models.checkpoint import load_checkpoint

    return Predictor(load_checkpoint(checkpoint), engine)


def _frame_rate(source: str) -> float | None:
    import cv2

    capture = cv2.VideoCapture(source)
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    return round(rate, 2) if rate > 0 else None


def _four_ports(free_port: Callable[[], int]) -> int:
    """The first of four ports in a row that are likely free: sessions rarely sit so high."""
    return min(free_port(), 65_000)


def _sort_out(results: Any, path: str, tables: list[tuple[str, dict[str, Any]]], plain: list[tuple[str, Any]]) -> None:
    """Into rows of the table and everything else, in the report's order."""
    for key, value in results.items():
        name = f"{path} {key}".strip()
        if key == "faults":
            continue  # each was shown when it had happened
        if isinstance(value, dict) and "blocks" in value:
            tables.append((name, value))
        elif isinstance(value, dict) and set(value) == {"ratio", "p10", "p90"}:
            plain.append((name, f"{value['ratio']:.2f} (p10 {value['p10']:.2f}, p90 {value['p90']:.2f})"))
        elif isinstance(value, dict) and value:
            _sort_out(value, name, tables, plain)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            plain += [(name, json.dumps(_short(item))) for item in value]
        else:
            plain.append((name, value))


def _short(item: dict[str, Any]) -> dict[str, Any]:
    """A trial without its blocks."""
    return {
        key: {name: figure for name, figure in value.items() if name != "blocks"} if isinstance(value, dict) else value
        for key, value in item.items()
    }
