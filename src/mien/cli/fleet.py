"""`mien fleet`: many cameras on many machines, with Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.cli import _options as options

group = typer.Typer(help="Run many cameras on many machines, with Ray.", no_args_is_help=True)

Fleet = Annotated[str, typer.Argument(help="The fleet's name, as in its plan.")]
Address = Annotated[str, typer.Option(help="Address of the Ray cluster; default: the one started from here.")]


@group.command()
def run(
    file: Annotated[Path, typer.Argument(help="The plan, such as configs/fleet/demo.toml.")],
    address: Annotated[
        str, typer.Option(help="A Ray cluster: auto, HOST:6379 or ray://HOST:10001; default: Ray on this machine.")
    ] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Return once the fleet runs, and leave it running.")] = False,
    seconds: Annotated[float | None, typer.Option(min=1, help="End the fleet after this many seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final state of the fleet as JSON.")] = False,
) -> None:
    """Start a fleet. It ends with its last clip. Ctrl-C ends a fleet on this machine, and detaches from a cluster."""
    from mien.cli._fleet import follow, start_behind
    from mien.stream.fleet.plan import read_plan

    plan = read_plan(file)
    for problem in plan.problems:
        typer.secho(f"mien: {problem.session} does not run: {problem.reason}", fg=typer.colors.YELLOW, err=True)
    if detach and not address:
        start_behind(file, plan.fleet)
    else:
        follow(plan, address, detach=detach, seconds=seconds, as_json=as_json)


@group.command()
def status(
    fleet: Fleet = "fleet",
    address: Address = "",
    as_json: options.Json = False,
    every: Annotated[bool, typer.Option("--all", help="Show all sessions, healthy ones too.")] = False,
) -> None:
    """Show nodes, pools and sessions once. Exits with 1 if something is wrong."""
    import msgspec

    from mien.cli._fleet import connected, show
    from mien.stream.fleet.cluster import ask
    from mien.stream.fleet.report import FleetCondition

    with connected(fleet, address) as (ray, directory):
        raw: bytes = ask(ray, directory.condition.remote, 10.0, "the directory")
    found = msgspec.json.decode(raw, type=FleetCondition)
    if as_json:
        typer.echo(raw.decode())
    else:
        show(found, every=every)
    well = all(session.state in ("running", "ended") for session in found.sessions)
    if found.problem or found.problems or not well:
        raise typer.Exit(1)


@group.command()
def stop(fleet: Fleet = "fleet", address: Address = "") -> None:
    """End a fleet: all its actors, on all nodes. The cluster stays, unless `mien fleet run` started it."""
    from mien.cli._fleet import connected, end

    with connected(fleet, address) as (ray, directory):
        ended = end(ray, directory, fleet)
    typer.echo(f"{fleet} has ended: {ended} actors", err=True)


@group.command()
def move(
    session: Annotated[str, typer.Argument(help="The session's name.")],
    fleet: options.FleetName = "fleet",
    to: Annotated[str, typer.Option(help="Name, address or id of the node; default: the least loaded.")] = "",
    capture: Annotated[bool, typer.Option("--capture", help="Move its capture too, not only its inference.")] = False,
    address: Address = "",
) -> None:
    """Move a session's inference to another pool or node, with a gap of about a second."""
    from mien.cli._fleet import tell

    tell(fleet, address, lambda directory: directory.move.remote(session, to, capture))


@group.command()
def drain(
    node: Annotated[str, typer.Argument(help="The node's name, address or id, as `mien fleet status` shows it.")],
    fleet: options.FleetName = "fleet",
    back: Annotated[bool, typer.Option("--undo", help="Allow the node to be used again.")] = False,
    address: Address = "",
) -> None:
    """Move everything off a node, for instance before a shutdown, and place nothing new there."""
    from mien.cli._fleet import tell

    tell(fleet, address, lambda directory: directory.drain.remote(node, back))
