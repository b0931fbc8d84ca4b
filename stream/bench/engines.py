"""Engines side by side, and what each way of saving work brings: all in one run, in turns and in random order."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.engines.base import PRECISIONS, Array, Engine, Network
from mien.engines.cache import Cache
from mien.engines.cmmsf import encoder_network, whole_network
from mien.engines.predictor import Predictor
from mien.engines.selection import choose_engine, open_backend, open_engine, usable_backends
from mien.errors import EngineError
from mien.models.checkpoint import Checkpoint
from mien.stream.bench.measurement import Turns, describe, ratio
from mien.stream.bench.streams import make_lanes
from mien.stream.bench.synthetic import FRAME_HZ, synthetic_inputs

if TYPE_CHECKING:
    from torch import nn

Turn = Callable[[int], Callable[[], object]]  # prepares a turn by its number, and returns what is timed

WARM_UP = 20
BASELINE = "torch-fp32"
TOGETHER = 8  # streams that share a batch


def bench_engines(checkpoint: Checkpoint, seconds: float = 20.0, cache: Path | None = None) -> dict[str, Any]:
    """Every engine that can run here: the whole model, and rolling prediction with what did not change reused.

    Returns, besides "refused", per engine "whole" and "rolling" (see `describe`); under "speedup" how many times as
    fast as the whole model in torch eager each of the two is; and under "gains" what the chosen engine wins by reusing
    encoded modalities, by batches, and by recurrences no longer than needed.
    """
    whole, rolling, refused = _open_all(checkpoint, cache)
    inputs = synthetic_inputs({spec.name: spec for spec in checkpoint.specs}, 3 * FRAME_HZ)
    candidates = {f"whole {id}": _infer(engine, inputs) for id, engine in whole.items()}
    candidates |= {f"rolling {id}": _predict(predictor) for id, predictor in rolling.items()}
    chosen = choose_engine(whole_network(checkpoint), cache=cache)
    savings = _savings(checkpoint, f"{chosen.engine}-{chosen.precision}", cache)
    for turns_of_pair in savings.values():
        candidates |= turns_of_pair
    turns = Turns(list(candidates))
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < 2 * WARM_UP or time.perf_counter() < until:
        for name in turns.order():
            run = candidates[name](rounds)
            started = time.perf_counter()
            run()
            turns.add(name, started)
        rounds += 1
    figures = {name: describe(values[WARM_UP:]) for name, values in turns.durations_ms.items()}
    base = figures[f"whole {BASELINE}"]["blocks"]
    speedup = {
        name: ratio(figures[name]["blocks"], base) for name in figures if name.startswith(("whole ", "rolling "))
    }
    gains = {}
    for saving, pair in savings.items():
        plain, saved = pair
        gains[saving] = ratio(figures[saved]["blocks"], figures[plain]["blocks"])
    return {
        "warm_up": WARM_UP,
        "threads": 1,
        "chosen": f"{chosen.engine}-{chosen.precision}: {chosen.reason}",
        "engines": figures,
        f"speedup over whole {BASELINE}": speedup,
        "gains": gains,
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


def _savings(checkpoint: Checkpoint, id: str, cache: Path | None) -> dict[str, dict[str, Turn]]:
    """Per way of saving work: without it, then with it; a turn of either gives the same results."""
    engine, _, precision = id.rpartition("-")

    def predictor(reuse: bool) -> Predictor:
        return Predictor(checkpoint, engine, precision, reuse=reuse, cache=cache)

    savings: dict[str, dict[str, Turn]] = {
        "encoding only what changed": {
            "every modality encoded": _predict(predictor(False)),
            "changed modalities encoded": _predict(predictor(True)),
        },
        f"batches of {TOGETHER} streams": {
            f"{TOGETHER} streams one by one": _predict(predictor(False), TOGETHER, batched=False),
            f"{TOGETHER} streams in a batch": _predict(predictor(False), TOGETHER),
        },
    }
    for spec in checkpoint.specs:
        stride = checkpoint.config.fitted(checkpoint.specs).encoders[spec.name].stride
        if stride > 1:
            long, short = (_recurrence(checkpoint, steps) for steps in (spec.steps, -(-spec.steps // stride)))
            savings[f"shorter recurrence of {spec.name}"] = {
                f"recurrence of {len(network.example['x'][0])} steps": _infer(
                    open_engine(network, engine, precision, cache=cache), [network.example]
                )
                for network in (long, short)
            }
    return savings


def _infer(engine: Engine, inputs: Sequence[dict[str, Array]]) -> Turn:
    return lambda turn: functools.partial(engine.infer, inputs[turn % len(inputs)])


def _predict(predictor: Predictor, streams: int = 1, *, batched: bool = True) -> Turn:
    """Frame after frame of streams that go on from turn to turn: what may be reused is what a stream lets it reuse."""
    windows, lanes = make_lanes(predictor, streams, time.monotonic_ns())

    def prepare(_: int) -> Callable[[], object]:
        due = [(lane.assembler.place, lane.advance()) for lane in lanes]
        groups = [due] if batched else [[one] for one in due]
        looks = [windows.look([place for place, _ in group], [t_ns for _, t_ns in group]) for group in groups]
        return lambda: [predictor.predict_look(windows, look) for look in looks]

    return prepare


def _recurrence(checkpoint: Checkpoint, steps: int) -> Network:
    """The recurrence of an encoder alone, with weights as they come, over so many steps."""
    dim = checkpoint.config.dim

    def build() -> nn.Module:
        import torch

        from mien.models.fusion import BiLSTM

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return BiLSTM(dim, dim // 2)

    x = np.random.default_rng(0).standard_normal((1, steps, dim)).astype(np.float32)
    version = encoder_network(checkpoint, checkpoint.specs[0]).version
    return Network("recurrence", version, build, {"x": x}, ("y",))
