"""Runs and plots of `mien bench`."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from mien.cli._terminal import ending_signals, make_console
from mien.config import load_config
from mien.errors import ConfigError, DataError, SourceError
from mien.files import whole_file
from mien.install import SAMPLE
from mien.stream.bench.measurement import load_per_core, surroundings
from mien.stream.bus.ports import free_ports

if TYPE_CHECKING:
    from mien.engines.predictor import Predictor
    from mien.stream.processes.plan import Session

_FORMAT = 1


def with_surroundings(kind: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run, and add machine, versions, and how busy the machine was."""
    # Spinning threads take the core that another process needs. Read when libraries are loaded.
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


def run_multi(
    checkpoint: str,
    engine: str,
    streams: int | None,
    seconds: float,
    processes: int,
    python: str,
) -> dict[str, Any]:
    """`mien bench multi`: a fixed number of streams, or the largest within the limit, over real sockets."""
    from mien.stream.bench.multi import measure_streams
    from mien.stream.bench.streams import find_most_streams

    def measure(count: int) -> dict[str, Any]:
        return measure_streams(checkpoint, engine, count, seconds, processes, python or sys.executable)

    return find_most_streams(measure, 4096, _report_trial) if streams is None else measure(streams)


def run_multi_in_process(
    checkpoint: str, engine: str, streams: int | None, seconds: float, *, profile: bool
) -> dict[str, Any]:
    """`mien bench multi --in-process`, and with `profile` the cost of batches by size."""
    from mien.engines.base import MAX_BATCH
    from mien.stream.bench.streams import bench_multi, compare_batching, find_most_streams, measure_batches

    predictor = open_predictor(checkpoint, engine)
    if profile:
        most = streams or (MAX_BATCH if predictor.on_gpu else 32)
        return measure_batches(predictor, [1 << power for power in range(most.bit_length())])
    if streams is not None:
        return {"model": predictor.id, **bench_multi(predictor, streams, seconds)}
    found = find_most_streams(lambda count: bench_multi(predictor, count, seconds), report=_report_trial)
    most = found["most_streams"]
    batching = {"batching": compare_batching(predictor, most, seconds)} if most > 1 else {}
    return {"model": predictor.id, **found, **batching}


def _report_trial(trial: dict[str, Any]) -> None:
    make_console(stderr=True).print(
        f"{trial['streams']:4} streams  p99 {trial['latency_ms'].get('p99', float('nan')):7.1f} ms  "
        f"{'holds' if trial['holds'] else 'does not hold'}"
    )


def until_stopped(run: Callable[[threading.Event], dict[str, Any]]) -> dict[str, Any]:
    """Run a measurement that Ctrl-C ends early: it then reports what it has."""
    with ending_signals() as stopping:
        return run(stopping)


def run_silence(seconds: float, asr: str | None) -> dict[str, Any]:
    """`mien bench silence`: words recognised without speech."""
    from mien.stream.bench.silence import measure_silence

    console = make_console(stderr=True)

    def report(name: str, figures: dict[str, Any]) -> None:
        console.print(f"{name:<10} {figures['words']:4} words in {figures['seconds']:.0f} s  {figures['text'][:60]}")

    return {"sounds": measure_silence(seconds, asr, report=report)}


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
    """`mien bench paced` and `mien bench soak`: all processes, on a looped clip, filmed at `fps` (0: its own)."""
    from mien.stream.bench.paced import record, slopes, summarise, timeline

    session = looped_session(clip, engine, checkpoint, {"clip.fps": fps, "text.asr": asr})
    with ending_signals() as stopping:
        recording = record(session, seconds, stopping)
    report: dict[str, Any] = {"model": recording.model, "clip": session.label, "workers": list(session.workers)}
    report |= summarise(recording, fps or _frame_rate(session.config.video.source))
    if soak:
        report["growth"] = slopes(recording, seconds)
    if plot is not None:
        draw(timeline(recording), plot, f"{session.label}, {recording.model}, {surroundings()['machine']}")
    return report


def minutes(text: str) -> float:
    """The operand of `soak`.

    Raises:
        ConfigError: it is not a positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ConfigError(f"mien bench soak takes minutes, not {text!r}")
    return value


def read_report(path: Path) -> dict[str, Any]:
    """Read a report written by `--json`.

    Raises:
        DataError: it is not a report.
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


def run_chaos(clip: Path | None, asr: str | None, minutes: float, every_s: float) -> dict[str, Any]:
    """`mien bench chaos`: a looped clip as camera and microphone, and a fault every `every_s`."""
    from mien.stream.bench.chaos import Chaos, Outcome
    from mien.stream.bench.devices import SoundCard, clip_camera
    from mien.stream.processes.plan import plan_session

    console = make_console(stderr=True)
    source = clip or SAMPLE
    with ExitStack() as stack, ending_signals() as stopping:
        camera = clip_camera(source)
        camera.switch_on()
        stack.callback(camera.switch_off)
        card = None
        try:
            card = SoundCard(source, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mien-sound-"))))
            stack.callback(card.close)
            card.plug_in()
            os.environ.update(card.environment)
        except SourceError as error:
            console.print(f"{error}; the clip's own sound is played instead", style="yellow")
        session = plan_session(
            load_config(
                overrides={
                    "video.source": camera.url,
                    "audio.source": "default" if card is not None else str(source),
                    "clip.loop": True,
                    "text.asr": asr,
                    "bus.port": free_ports(),
                    "session": "chaos",
                }
            )
        )

        def show(outcome: Outcome) -> None:
            masked = "not masked" if outcome.masked_s is None else f"masked after {outcome.masked_s:5.2f} s"
            back = "NOT RECOVERED" if outcome.recovered_s is None else f"recovered after {outcome.recovered_s:5.2f} s"
            unexplained = f"  unexplained: {'; '.join(outcome.unexplained)}" if outcome.unexplained else ""
            console.print(
                f"{outcome.fault:<30} {masked:<22} {back:<24} lost {outcome.lost:4}  silence at most "
                f"{outcome.longest_silence_s:4.1f} s  memory {outcome.memory_mb:5.0f} MB{unexplained}",
                soft_wrap=True,
            )

        return Chaos(session, every_s, show, camera, card).run(minutes * 60, stopping)


def looped_session(clip: Path | None, engine: str, checkpoint: str, overrides: dict[str, Any] | None = None) -> Session:
    """A clip that plays again and again; the sample if none is given."""
    from mien.stream.processes.plan import plan_session

    source = str(clip or SAMPLE)
    looped = {
        "video.source": source, "audio.source": source, "clip.loop": True, "inference.engine": engine,
        "inference.checkpoint": checkpoint, "bus.port": free_ports(), "session": "bench",
    }  # fmt: skip
    return plan_session(load_config(overrides={**(overrides or {}), **looped}))


def draw(points: list[tuple[float, float]], path: Path, title: str) -> None:
    """Plot distribution and timeline of the software latency as a PNG.

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
    ordered = sorted(latency_ms)
    for percent, style in ((50, "-"), (99, "--")):
        value = ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
        right.axhline(value, color="black", linewidth=1, linestyle=style, label=f"p{percent} {value:.1f} ms")
        left.axvline(value, color="black", linewidth=1, linestyle=style)
    right.set(xlabel="s", ylabel="ms", ylim=(0, None))
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    figure.suptitle(title, fontsize=9)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=130, format="png")
    pyplot.close(figure)


def open_predictor(checkpoint: str, engine: str) -> Predictor:
    """The model of a measurement that needs no other process."""
    from mien.engines.predictor import Predictor
    from mien.models.checkpoint import load_checkpoint

    return Predictor(load_checkpoint(checkpoint), engine)


def _frame_rate(source: str) -> float | None:
    import cv2

    capture = cv2.VideoCapture(source)
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    return round(rate, 2) if rate > 0 else None
