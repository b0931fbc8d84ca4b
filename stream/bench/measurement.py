"""Reliable figures: durations with their spread, machine and versions, and comparisons."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mien.install import commit, installed_versions

BLOCKS = 20  # blocks in a run; the spread of their medians is that of a comparison
_PACKAGES = ("mien", "numpy", "onnxruntime", "openvino", "torch", "torch-tensorrt", "torch-tensorrt-rtx", "pyzmq")


def describe(durations_ms: Sequence[float]) -> dict[str, Any]:
    """Percentiles of durations in ms, their count, and medians of successive blocks."""
    values = np.asarray(durations_ms, np.float64)
    if not len(values):
        return {"n": 0}
    percentiles = {f"p{p}": _rounded(np.percentile(values, p)) for p in (50, 90, 95, 99)}
    blocks = [_rounded(np.median(block)) for block in np.array_split(values, min(BLOCKS, len(values)))]
    return {"n": len(values), **percentiles, "max": _rounded(values.max()), "blocks": blocks}


def ratio(base_blocks: Sequence[float], other_blocks: Sequence[float]) -> dict[str, float]:
    """Ratio of medians, other to base, and its 10th and 90th percentile over all pairs of blocks.

    Block medians within a run vary with other load on the machine; a ratio whose spread includes 1 shows nothing.
    """
    base, other = np.asarray(base_blocks, np.float64), np.asarray(other_blocks, np.float64)
    pairs = (other[None, :] / np.maximum(base[:, None], 1e-9)).ravel()
    middle = float(np.median(other) / max(float(np.median(base)), 1e-9))
    return {
        "ratio": _rounded(middle),
        "p10": _rounded(np.percentile(pairs, 10)),
        "p90": _rounded(np.percentile(pairs, 90)),
    }


def compare_reports(base: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`ratio` of every measurement present in both reports, by its path."""
    left, right = dict(_measurements(base)), dict(_measurements(other))
    return {path: ratio(left[path], right[path]) for path in left if path in right}


@functools.cache
def surroundings() -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": installed_versions(_PACKAGES),
        "commit": commit(),
    }


def load_per_core() -> float | None:
    """Load average per core over the last minute, if available; above 1, timings include waiting for a core."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except (AttributeError, OSError):
        return None


def rounds(names: Iterable[str]) -> Iterator[list[str]]:
    """Endless rounds of candidates, each in random order: other load on the machine affects all of them alike."""
    random, candidates = np.random.default_rng(0), list(names)
    while True:
        yield random.permutation(candidates).tolist()


def _measurements(report: Any, path: str = "") -> list[tuple[str, list[float]]]:
    if not isinstance(report, dict):
        return []
    if "blocks" in report:
        return [(path, report["blocks"])]
    found = []
    for key, value in report.items():
        found += _measurements(value, f"{path}.{key}" if path else str(key))
    return found


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
