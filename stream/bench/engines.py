"""Engines side by side: all in one run, in turns and in random order."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mien.engines.base import PRECISIONS, Array, Engine
from mien.engines.cache import Cache
from mien.engines.cmmsf import whole_network
from mien.engines.predictor import Predictor
from mien.engines.selection import choose_engine, open_backend, usable_backends
from mien.errors import EngineError
from mien.models.checkpoint import Checkpoint
from mien.stream.bench.measurement import describe, ratio, rounds
from mien.stream.bench.streams import make_lanes
from mien.stream.bench.synthetic import FRAME_HZ, synthetic_inputs

Turn = Callable[[int], Callable[[], object]]  # prepares a turn by its number, and returns what is timed

WARM_UP = 20
BASELINE = "torch-fp32"


def bench_engines(checkpoint: Checkpoint, seconds: float = 20.0, cache: Path | None = None) -> dict[str, Any]:
    """Every engine that can run here: the whole model, and rolling prediction with what did not change reused.

    Returns, besides "refused", per engine "whole" and "rolling" (see `describe`), and under "speedup" how many times as
    fast as the whole model in torch eager each of the two is.
    """
    whole, rolling, refused = _open_all(checkpoint, cache)
    inputs = synthetic_inputs({spec.name: spec for spec in checkpoint.specs}, 3 * FRAME_HZ)
    candidates = {f"whole {id}": _infer(engine, inputs) for id, engine in whole.items()}
    candidates |= {f"rolling {id}": _predict(predictor) for id, predictor in rolling.items()}
    chosen = choose_engine(whole_network(checkpoint), cache=cache)
    durations_ms: dict[str, list[float]] = {name: [] for name in candidates}
    until = time.perf_counter() + seconds
    for number, order in enumerate(rounds(candidates)):
        if number >= 2 * WARM_UP and time.perf_counter() >= until:
            break
        for name in order:
            run = candidates[name](number)
            started = time.perf_counter()
            run()
            durations_ms[name].append((time.perf_counter() - started) * 1e3)
    figures = {name: describe(values[WARM_UP:]) for name, values in durations_ms.items()}
    base = figures[f"whole {BASELINE}"]["blocks"]
    speedup = {name: ratio(figures[name]["blocks"], base) for name in figures}
    return {
        "warm_up": WARM_UP,
        "threads": 1,
        "chosen": f"{chosen.engine}-{chosen.precision}: {chosen.reason}",
        "engines": figures,
        f"speedup over whole {BASELINE}": speedup,
        "refused": refused,
    }


def _open_all(
    checkpoint: Checkpoint, cache: Path | None
) -> tuple[dict[str, Engine], dict[str, Predictor], dict[str, str]]:
    """Whole and rolling by engine and precision, and why the others are not there."""
    whole: dict[str, Engine] = {}
    rolling: dict[str, Predictor] = {}
    usable, refused = usable_backends()
    network = whole_network(checkpoint)
    for backend in usable:
        for precision in PRECISIONS:
            if precision not in backend.precisions:
                continue
            id = f"{backend.name}-{precision}"
            try:
                engine = open_backend(network, backend, precision, 1, Cache(cache))
                predictor = Predictor(checkpoint, backend.name, precision, cache=cache)
            except EngineError as error:
                refused[id] = str(error)
                continue
            whole[id] = engine
            if predictor.id.endswith(f"/{id}"):
                rolling[id] = predictor
            else:
                refused[f"{id} rolling"] = predictor.reason
    return whole, rolling, refused


def _infer(engine: Engine, inputs: Sequence[dict[str, Array]]) -> Turn:
    return lambda turn: functools.partial(engine.infer, inputs[turn % len(inputs)])


def _predict(predictor: Predictor) -> Turn:
    """Frames of one continuous stream: reuse is as it would be live."""
    windows, ((stream, assembler),) = make_lanes(predictor, 1, time.monotonic_ns())

    def prepare(_: int) -> Callable[[], object]:
        look = windows.look([assembler.place], [stream.feed(assembler)])
        return lambda: predictor.predict_look(windows, look)

    return prepare
