"""`mien bench`: benchmarks of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mien.cli import _options as options

STDOUT = Path("-")


Kind = Literal[
    "engines", "single", "paced", "multi", "soak", "bus", "watchers", "chaos", "flood", "subscribers", "bridges",
    "silence", "compare",
]  # fmt: skip


def command(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="What to measure, see above.")] = "paced",
    operands: Annotated[list[str] | None, typer.Argument(help="soak: minutes. compare: two reports.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Duration, without the warm-up.")] = None,
    clip: Annotated[Path | None, typer.Option(help="paced, soak: clip to play; default: the sample.")] = None,
    fps: Annotated[
        float, typer.Option(min=0, max=240, help="paced, soak: frame rate of the camera; 0: the clip's own.")
    ] = 30.0,
    asr: Annotated[str | None, typer.Option(help="paced, soak, silence: recogniser, tiny.en, base ...")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="chaos: duration.")] = 20.0,
    every: Annotated[float, typer.Option(min=5, help="chaos: seconds between faults.")] = 20.0,
    streams: Annotated[int | None, typer.Option("-n", min=1, help="multi: number of streams.")] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="multi: without sockets, in this process.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="multi: cost of each step by batch size.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="multi: inference processes that share the streams.")] = 1,
    python: Annotated[str, typer.Option(help="multi: Python interpreter of another mien to measure.")] = "",
    engine: Annotated[str, typer.Option(help="Inference engine, or auto.")] = "auto",
    checkpoint: options.Checkpoint = "",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file; -: standard output.")
    ] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="paced, soak: write a PNG of the latency.")] = None,
) -> None:
    """Benchmark mien on this machine; reports include hardware, versions and load.

    \b
    paced         all processes on a clip at a camera's pace, dropping late frames
    soak MINUTES  the same for longer, with the growth of latency and memory
    single        one stream, as fast as possible
    multi         the most 30 Hz streams that one inference process sustains, or -n
    engines       all inference engines, in turns
    bus           ZeroMQ alone
    bridges       the latency that each bridge adds
    watchers      a session with no, one and five dashboard viewers
    subscribers   100 fast subscribers, 20 slow ones and one that never reads
    flood         features at ten times the normal rate
    chaos         a session under injected faults
    silence       words recognised in sounds without speech; there must be none
    compare A B   ratios of two JSON reports, with their spread
    """  # noqa: D301 - typer keeps the lines of a paragraph that begins so
    from collections.abc import Callable
    from functools import partial
    from typing import Any

    from mien.cli import _bench, _figures
    from mien.cli._terminal import interrupting_signals, make_console
    from mien.errors import ConfigError
    from mien.files import check_target, json_text, write_file

    given = operands or []
    expected = {"soak": 1, "compare": 2}.get(kind, 0)
    if len(given) != expected:
        raise ConfigError(f"mien bench {kind} takes {expected} operands, not {len(given)}; see mien bench --help")
    if kind == "compare":
        _figures.show_comparison(*(_bench.read_report(Path(path)) for path in given))
        return
    if plot_path is not None and kind not in ("paced", "soak"):
        raise ConfigError("--plot works with paced and soak only")

    for path in (json_path, plot_path):
        if path is not None and path != STDOUT:
            check_target(path)  # fail early: a benchmark takes minutes

    from mien.models.checkpoint import load_checkpoint
    from mien.stream.bench import benchmark, bridges, engines, load, watchers

    runs: dict[Kind, Callable[[], dict[str, Any]]] = {
        "engines": lambda: engines.bench_engines(load_checkpoint(checkpoint), seconds or 20.0),
        "single": lambda: benchmark.bench_single(_bench.open_predictor(checkpoint, engine), seconds or 10.0),
        "multi": lambda: (
            _bench.run_multi_in_process(checkpoint, engine, streams, seconds or 5.0, profile=profile)
            if in_process or profile
            else _bench.run_multi(checkpoint, engine, streams, seconds or 5.0, processes, python)
        ),
        "watchers": lambda: _bench.until_stopped(
            partial(watchers.measure_watchers, _bench.looped_session(clip, engine, checkpoint), seconds or 15.0)
        ),
        "bus": lambda: benchmark.bench_bus(seconds or 6.0),
        "bridges": lambda: bridges.measure_bridges(seconds or 10.0),
        "silence": lambda: _bench.run_silence(seconds or 600.0, asr),
        "chaos": lambda: _bench.run_chaos(clip, asr, minutes, every),
        "flood": lambda: _bench.until_stopped(partial(load.measure_flood, engine, checkpoint, seconds or 30.0)),
        "subscribers": lambda: _bench.until_stopped(
            partial(load.measure_subscribers, engine, checkpoint, seconds or 30.0)
        ),
        "paced": lambda: _bench.run_session(clip, asr, engine, checkpoint, seconds or 30.0, fps, plot_path, soak=False),
        "soak": lambda: _bench.run_session(
            clip, asr, engine, checkpoint, _bench.minutes(given[0]) * 60, fps, plot_path, soak=True
        ),
    }
    with interrupting_signals():  # so that what it has started ends with it
        report = _bench.with_surroundings(kind, runs[kind])
    _figures.show(report, make_console(stderr=json_path == STDOUT))
    if json_path is not None:
        text = json_text(report, indent=2) + "\n"
        typer.echo(text, nl=False) if json_path == STDOUT else write_file(json_path, text)
