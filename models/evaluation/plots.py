"""Confusion matrices (normalised by class, and counts) and calibration diagrams of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mien.files import make_folder, whole_file


def save_plots(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Two figures per corpus with emotions, and one for damage. `report`: the output of `mien eval --json`."""
    make_folder(folder)
    paths = []
    for corpus, made in report["corpora"].items():
        if "emotion" not in made:
            continue
        paths.append(_confusion(made["emotion"], corpus, folder / f"{corpus}-confusion.png"))
        paths.append(_calibration(made, corpus, folder / f"{corpus}-calibration.png"))
    if "damage" in report:
        paths.append(_damage(report["damage"], folder / "damage.png"))
    return paths


def present_classes(metrics: Mapping[str, Any]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The classes that occur, and their rows of the confusion matrix (classes, labels)."""
    table = np.array(metrics["confusion"], np.int64)
    present = table.sum(1) > 0
    return [name for name, is_present in zip(metrics["labels"], present, strict=True) if is_present], table[present]


def _damage(made: Mapping[str, Any], path: Path) -> Path:
    """One row per modality, one panel per damage: accuracy alone and fused, and the median share, by strength."""
    from matplotlib.figure import Figure

    columns = max(len(table["kinds"]) for table in made.values())
    figure = Figure(figsize=(2.6 * columns, 2.5 * len(made)), layout="constrained")
    axes = figure.subplots(len(made), columns, sharey=True, squeeze=False)
    for row, (name, table) in zip(axes, made.items(), strict=True):
        for axis in row[len(table["kinds"]) :]:
            axis.set_axis_off()
        for axis, (kind, levels) in zip(row, table["kinds"].items(), strict=False):
            steps = [table["whole"], *levels]
            places = range(len(steps))
            axis.plot(places, [s["alone"]["accuracy"] for s in steps], color="tab:blue", label=f"{name} alone")
            axis.plot(places, [s["company"]["accuracy"] for s in steps], color="tab:green", label="with the others")
            axis.plot(places, [s["share"] for s in steps], color="tab:orange", label="its share")
            if table["without"]:
                axis.axhline(table["without"]["accuracy"], color="grey", linewidth=1, linestyle=":")
            axis.set_xticks(places, ["none", *(f"{level['strength']:g}" for level in levels)], fontsize=7)
            axis.set_ylim(0, 1)
            axis.set_title(f"{name}: {kind}", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    labels = ["accuracy alone", *labels[1:]]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return _saved(figure, path, dpi=110)


def _confusion(metrics: Mapping[str, Any], corpus: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    truths, counts = present_classes(metrics)
    shares = counts / counts.sum(1, keepdims=True)
    figure = Figure(figsize=(6.4, 1.8 + 0.55 * len(counts)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(metrics["labels"])), metrics["labels"], rotation=45, ha="right")
    axes.set_yticks(range(len(counts)), [f"{name} ({n})" for name, n in zip(truths, counts.sum(1), strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(f"{corpus}: UAR {metrics['uar']:.3f}, {metrics['count']} items")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        text = f"{share:.2f}\n{counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return _saved(figure, path)


def _calibration(made: Mapping[str, Any], corpus: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    bins = made["calibration"]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    sizes = [20 + 200 * b["count"] / max(x["count"] for x in bins) for b in bins]
    axes.scatter([b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=sizes)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
    axes.set_title(f"{corpus}: ECE {made['emotion']['ece']:.3f}")
    return _saved(figure, path)


def _saved(figure: Any, path: Path, dpi: int = 150) -> Path:
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=dpi, format="png")
    return path
