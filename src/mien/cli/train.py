"""`mien train`: from corpora to weights, in one command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    config: Annotated[Path | None, typer.Option(help="TOML file, such as configs/train.toml.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Corpora, datasets of `mien extract`, or MMSA pickles. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the weights; default: `weights` in --work.")] = None,
    work: Annotated[Path | None, typer.Option(help="Working directory; a stopped run resumes from it.")] = None,
    replace_shipped: Annotated[
        bool, typer.Option("--replace-shipped", help="Overwrite the weights that ship with mien.")
    ] = False,
    stages: Annotated[str, typer.Option(help="Only these of text,face,extract,speech,fusion.")] = "",
    device: Annotated[str | None, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the fusion stage.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of the fusion stage.")] = None,
    allow_pickle: options.AllowPickle = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log the progress of every stage.")] = False,
    ablations: Annotated[bool, typer.Option("--ablations", help="Instead, train the fusion without parts.")] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Instead, train the voice encoder without this corpus, and test on it; or all. Repeatable."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="With --ablations: seeds, comma-separated.")] = "1111,1112,1113",
) -> None:  # fmt: skip
    """Train the models on labelled data; the result is a folder for --checkpoint."""
    import logging

    import msgspec

    from mien.cli._terminal import stage_progress
    from mien.files import json_text
    from mien.stream.offline.plan import load_plan, output_folder
    from mien.stream.offline.stages import train

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s")
    plan = load_plan(config)
    fusion = {name: value for name, value in (("seed", seed), ("steps", steps)) if value is not None}
    given = {
        "data": tuple(map(str, data or ())), "out": str(out or ""), "replace_shipped": replace_shipped,
        "work": str(work or ""), "device": device, "stages": tuple(filter(None, stages.split(","))),
        "allow_pickle": allow_pickle, "fusion": msgspec.structs.replace(plan.fusion, **fusion),
    }  # fmt: skip
    plan = msgspec.structs.replace(plan, **{name: value for name, value in given.items() if value})
    if leave_out:
        from mien.stream.offline.stages import leave_out as judge

        with stage_progress() as progress:
            table = judge(plan, leave_out, progress)
        typer.echo(table)
        return
    if ablations:
        from mien.stream.offline.ablation import ablate, ablation_table

        with stage_progress() as progress:
            results = ablate(plan, [int(s) for s in seeds.split(",")], progress)
        typer.echo(ablation_table(results))
        return
    with stage_progress() as progress:
        figures = train(plan, progress)
    typer.echo(json_text(figures, indent=1))
    _print_usage(output_folder(plan))


def _print_usage(folder: Path) -> None:
    from mien.models.weights import FUSION, SHIPPED_FOLDER

    if folder == SHIPPED_FOLDER:
        typer.echo(
            f"the weights that ship with mien were replaced, in {folder}; `mien weights --restore` restores them.\n"
            "To ship these instead: cd models/weights && sha256sum *.safetensors *.json > SHA256SUMS",
            err=True,
        )
    elif (folder / FUSION).is_file():
        typer.echo(
            f"the weights are in {folder}; to use them:\n"
            f"  mien run --checkpoint {shlex.quote(str(folder))}\n"
            "or `inference.checkpoint` in a configuration; `mien weights` describes them",
            err=True,
        )
