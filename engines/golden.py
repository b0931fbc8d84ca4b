"""Golden inputs and outputs that prove a compiled form equal to its network.

Inputs are derived from the network's example; outputs are computed by the torch reference at compile time. No
engine is used before it has reproduced them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mien.engines.base import Array, Engine, Network, Precision
from mien.errors import EngineError

FP32_TOLERANCE = 1e-4
REDUCED_TOLERANCE = 0.01  # of the output's standard deviation
# Lower bound of that deviation: random windows may all get about the same answer, and a thousandth of a sentiment
# from -3 to 3, or of a probability, is invisible to users.
LEAST_DEVIATION = 0.1
# There are few golden cases: reduced-precision engines that used more than this share of the tolerance here exceeded
# it on real recordings.
REDUCED_GATE = 0.5
ROWS = 4

Case = dict[str, Array]


def golden_inputs(network: Network) -> list[Case]:
    """The example, and a variation of it with another size on every dynamic axis.

    The variation's rows all differ: an engine that mixes up rows, or baked in the example's size, cannot reproduce
    them. If there are masks, each row after the first has one input fully masked.
    """
    sizes: dict[str, int] = {}
    for name, axes in network.dynamic.items():
        if name in network.example:
            for axis, symbol in axes.items():
                size = network.example[name].shape[axis]
                sizes.setdefault(symbol, ROWS if axis == 0 else max(1, size - size // 3))
    random = np.random.default_rng(0)
    varied: Case = {}
    masks: list[str] = []
    for name, array in network.example.items():
        for axis, symbol in network.dynamic.get(name, {}).items():
            array = np.take(array, np.arange(sizes[symbol]) % array.shape[axis], axis)
        if array.ndim > 1:
            array = np.stack([np.roll(row, index, -1) for index, row in enumerate(array)])
        if not np.issubdtype(array.dtype, np.floating):
            varied[name] = array
        elif array.any() and np.isin(array, (0.0, 1.0)).all():
            varied[name] = array
            masks.append(name)
        else:
            # Scaled to each feature's own deviation: their scales may be far apart.
            spread = array.std(tuple(range(array.ndim - 1)), keepdims=True)
            noise = random.standard_normal(array.shape) * np.where(spread > 0, spread, 1.0)
            varied[name] = (array + noise).astype(array.dtype)
    for index, name in enumerate(masks, start=1):
        if len(varied[name]) > len(masks):
            varied[name][index] = 0.0
    return [{name: np.ascontiguousarray(array) for name, array in network.example.items()}, varied]


class Golden:
    """Inputs, and the reference's outputs.

    Args:
        inputs: one mapping per case. outputs: one mapping per case, by output name.
    """

    def __init__(self, inputs: Sequence[Case], outputs: Sequence[Case]) -> None:
        self.inputs = list(inputs)
        self.outputs = list(outputs)

    def save(self, path: Path) -> None:
        """Write both as .npz."""
        arrays = {f"in/{i}/{name}": a for i, case in enumerate(self.inputs) for name, a in case.items()}
        arrays |= {f"out/{i}/{name}": a for i, case in enumerate(self.outputs) for name, a in case.items()}
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read a file written by `save`.

        Raises:
            OSError, ValueError, KeyError: not such a file.
        """
        sides: dict[str, dict[int, Case]] = {"in": {}, "out": {}}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                side, case, name = key.split("/", 2)
                sides[side].setdefault(int(case), {})[name] = arrays[key]
        ordered = {side: [cases[index] for index in sorted(cases)] for side, cases in sides.items()}
        return cls(ordered["in"], ordered["out"])

    def check(self, engine: Engine, precision: Precision) -> float:
        """The largest difference from the reference, as a fraction of the tolerance.

        Raises:
            EngineError: the engine fails or deviates from the reference.
        """
        worst = 0.0
        results = [engine.infer(case) for case in self.inputs]
        for name in self.outputs[0]:
            expected = [case[name] for case in self.outputs]
            allowed = tolerance(expected, precision) * (1.0 if precision == "fp32" else REDUCED_GATE)
            for index, (want, result) in enumerate(zip(expected, results, strict=True)):
                got = result.get(name)
                if got is None or got.shape != want.shape:
                    raise EngineError(
                        f"{engine.id} gives {name!r} of shape {None if got is None else got.shape} "
                        f"where the reference gives {want.shape}"
                    )
                off = float(np.abs(got.astype(np.float64) - want).max(initial=0.0))
                if not off <= allowed:
                    raise EngineError(
                        f"{engine.id} is {off:.1e} off the reference in {name!r} of golden case {index}; "
                        f"allowed are {allowed:.1e}"
                    )
                worst = max(worst, off / allowed)
        return worst


def tolerance(reference: Sequence[Array], precision: Precision) -> float:
    """Permitted deviation: 1e-4 in float32; reduced, 1 % of the standard deviation, at least of `LEAST_DEVIATION`."""
    values = np.concatenate([array.ravel() for array in reference]).astype(np.float64)
    if precision == "fp32":
        return FP32_TOLERANCE * max(1.0, float(values.std()))
    return REDUCED_TOLERANCE * max(float(values.std()), LEAST_DEVIATION)
