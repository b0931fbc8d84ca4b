"""`mien compare`: two recordings of the same evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mien.cli import _options as options


def command(
    first: Annotated[Path, typer.Argument(help="A recording (MCAP), or an output of mien predict.")],
    second: Annotated[Path, typer.Argument(help="Its replay, or another output.")],
    plot: Annotated[Path | None, typer.Option("--plot", "-p", help="Draw both and their difference (PNG).")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare two recordings or two outputs of `mien predict`, of different models or engines."""
    from mien.files import check_target, json_text
    from mien.stream.recording.comparison import compare, draw_comparison

    if plot is not None:
        check_target(plot, inputs=[first, second])
    figures = compare(first, second)
    if plot is not None:
        draw_comparison(first, second, plot)
    if as_json:
        typer.echo(json_text(figures, indent=1))
        return
    for line in _lines(figures):
        typer.echo(line)
    if plot is not None:
        typer.echo(f"drawn in {plot}")


def _lines(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"{name:<7}{side['file']}: {side['predictions']} predictions by {', '.join(side['models'])}"
        for name, side in (("first", figures["first"]), ("second", figures["second"]))
    ]
    lines.append(f"{figures['instants']} instants in both, {figures['bit_equal']} of them bit-equal")
    if figures["abstains_differently"]:
        lines.append(f"only one of the two abstains at {figures['abstains_differently']}")
    sentiment = figures["sentiment"]
    if sentiment:
        correlation = sentiment["correlation"]
        lines.append(
            f"sentiment    mean difference {sentiment['mean_difference']:+.2g}, absolute "
            f"{sentiment['mean_absolute_difference']:.2g}, largest {sentiment['largest_difference']:+.2g}, correlation "
            + ("–" if correlation is None else f"{correlation:.4f}")
        )
        lines.append(
            f"emotions     same top emotion at {figures['same_top_emotion']:.1%}, "
            f"total variation {figures['emotions_total_variation']:.2g}"
        )
        lines.append(f"confidence   mean difference {figures['confidence_mean_difference']:+.2g}")
        gates = "  ".join(f"{name} {value:+.2g}" for name, value in figures["gates_mean_difference"].items())
        lines.append(f"shares       mean difference  {gates}")
    return lines
