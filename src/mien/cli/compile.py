"""`mien compile`: compile the model before it is needed, here or for another GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    engine: Annotated[str, typer.Option(help="Engine to compile for, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    batch: Annotated[str, typer.Option(help="Fixed batch sizes to compile besides the dynamic one, such as 1,8.")] = "",
    target_sm: Annotated[
        str | None, typer.Option("--target-sm", help="TensorRT: another GPU's compute capability, such as 8.9.")
    ] = None,
    checkpoint: options.Checkpoint = "",
    output: Annotated[Path, typer.Option(help="Folder for engines of --target-sm.")] = Path(),
) -> None:
    """Compile the checkpoint's networks, so that the first run starts in a second.

    With --target-sm, TensorRT engines for another GPU are written to --output instead.
    """
    import time

    from mien.engines.cache import Cache
    from mien.engines.cmmsf import whole_network
    from mien.engines.predictor import Predictor
    from mien.engines.selection import compile_together, find_usable, known_precision, open_backend
    from mien.errors import EngineError
    from mien.files import make_folder, write_file
    from mien.models.checkpoint import load_checkpoint

    try:
        sizes = [int(size) for size in batch.split(",") if size.strip()]
    except ValueError as error:
        raise EngineError(f"--batch is {batch!r}; give whole numbers, such as 1,8") from error
    if any(size < 1 for size in sizes):
        raise EngineError(f"--batch is {batch!r}; every size must be 1 or more")
    wanted = known_precision(precision)
    weights = load_checkpoint(checkpoint)
    started = time.perf_counter()
    if target_sm is not None:
        from mien.engines.tensorrt.engine import backend as tensorrt
        from mien.engines.tensorrt.engine import build_plan

        if engine not in ("auto", tensorrt.name) or wanted not in tensorrt.precisions:
            raise EngineError("--target-sm is for --engine tensorrt, in fp32 or fp16")
        make_folder(output)
        fixed: list[int | None] = [*sizes] or [None]
        for size in fixed:
            plan, _ = build_plan(whole_network(weights, size), wanted, size, target_sm)
            path = output / f"{weights.id}-sm{target_sm.replace('.', '')}-{wanted}-batch{size or 'any'}.plan"
            write_file(path, plan)
            typer.echo(f"{path}  {len(plan) / 2**20:.1f} MiB  {time.perf_counter() - started:.1f} s")
        return
    predictor = Predictor(weights, engine, precision)
    typer.echo(f"{predictor.id}  {predictor.reason}  {time.perf_counter() - started:.1f} s")
    name, _, used = predictor.id.rsplit("/", 1)[1].split("+")[0].rpartition("-")
    kind = known_precision(used)
    fixed_networks = {size: whole_network(weights, size) for size in sizes}
    compile_together([*fixed_networks.values()], name, kind)
    for size, network in fixed_networks.items():
        opened = open_backend(network, find_usable(name), kind, 1, Cache())
        typer.echo(f"{opened.id}  batch {size}  {time.perf_counter() - started:.1f} s")
