"""Actions of `mien fleet`: start, follow, show and end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import typer

from mien.cli._terminal import ending_signals, make_console, print_rows
from mien.errors import FleetError
from mien.stream.fleet import cluster
from mien.stream.fleet.node import state_folder
from mien.stream.fleet.plan import Plan
from mien.stream.fleet.report import FleetCondition
from mien.stream.processes.child import PROGRAM

_LOOK_S = 0.5
_START_S = 60.0
_MOST_ROWS = 60
_COLOURS = {"running": "green", "ended": "green", "degraded": "yellow", "starting": "yellow"}


@contextmanager
def connected(fleet: str, address: str) -> Iterator[tuple[Any, Any]]:
    """Ray, and the directory of a running fleet.

    Raises:
        FleetError: there is none.
    """
    ray = cluster.join(fleet, address or cluster.known_address(fleet))
    try:
        yield ray, cluster.directory_of(ray, fleet)
    finally:
        ray.shutdown()


def tell(fleet: str, address: str, call: Callable[[Any], Any]) -> None:
    """Have the directory of a running fleet do something, and print its answer."""
    with connected(fleet, address) as (ray, directory):
        answer = cluster.ask(ray, lambda: call(directory), 10.0, "the directory")
    typer.echo(answer, err=True)


def follow(plan: Plan, address: str, *, detach: bool, seconds: float | None, as_json: bool) -> None:
    """Start a fleet, and report on its sessions until it ends or the user detaches.

    Raises:
        FleetError: it cannot be started, or is already running.
    """
    with ending_signals() as stopping:
        ray = cluster.join(plan.fleet, address) if address else cluster.start_embedded(plan.fleet)
        directory, last, over = None, None, not address
        try:
            for problem in cluster.exposed_ports(ray):
                typer.secho(f"mien: {problem}", fg=typer.colors.YELLOW, err=True)
            if address:
                cluster.remember(plan.fleet, address)
            from mien.stream.fleet.directory import open_directory

            directory = open_directory(ray, plan.fleet, msgspec.msgpack.encode(plan), bool(address))
            last = _wait_gateway(ray, directory, stopping)
            typer.echo(f"the fleet {plan.fleet} publishes at {last.gateway}: {len(last.sessions)} sessions", err=True)
            if detach:
                typer.echo(f"it keeps running; to look at it: mien fleet status {plan.fleet}", err=True)
                return
            last, ended = _watch(ray, directory, last, stopping, seconds)
            over = over or ended
            if not over:
                typer.echo(f"the fleet keeps running; to end it: mien fleet stop {plan.fleet}", err=True)
        finally:
            if over and directory is not None:
                with suppress(FleetError):
                    end(ray, directory, plan.fleet)
            ray.shutdown()
    if last is not None and as_json:
        typer.echo(msgspec.json.encode(last).decode())
    elif last is not None:
        for session in last.sessions:
            typer.echo(f"{session.name}: {session.predictions} predictions, {session.state}")


def _wait_gateway(ray: Any, directory: Any, stopping: threading.Event) -> FleetCondition:
    deadline_s = time.monotonic() + _START_S
    while True:
        found = _condition(ray, directory, _START_S)
        if found.gateway:
            return found
        if found.problem:
            raise FleetError(found.problem)
        if stopping.wait(_LOOK_S) or time.monotonic() > deadline_s:
            raise FleetError("the fleet's gateway did not start")


def _watch(
    ray: Any, directory: Any, last: FleetCondition, stopping: threading.Event, seconds: float | None
) -> tuple[FleetCondition, bool]:
    """Report changes. Returns the last condition, and whether the fleet has finished."""
    output: dict[str, tuple[str, str]] = {}
    began_s = time.monotonic()
    while not stopping.wait(_LOOK_S):
        try:
            last = _condition(ray, directory, 10.0)
        except FleetError:
            if not _is_running(ray, directory):
                return last, True  # `mien fleet stop`
            continue
        for session in last.sessions:
            state = session.state, session.note
            if output.get(session.name) != state:
                output[session.name] = state
                where = f" on {session.node}" if session.node else ""
                note = f": {session.note}" if session.note else ""
                typer.echo(f"{session.name} {session.state}{where}{note}", err=True)
        if last.sessions and all(session.state == "ended" for session in last.sessions):
            return last, True
        if seconds is not None and time.monotonic() - began_s >= seconds:
            return last, True
    return last, False


def _condition(ray: Any, directory: Any, timeout_s: float) -> FleetCondition:
    raw = cluster.ask(ray, directory.condition.remote, timeout_s, "the directory")
    return msgspec.json.decode(raw, type=FleetCondition)


def _is_running(ray: Any, directory: Any) -> bool:
    try:
        ray.get(directory.processes.remote(), timeout=10.0)
    except ray.exceptions.ActorDiedError:
        return False
    except Exception:
        return True
    return True


def end(ray: Any, directory: Any, fleet: str) -> int:
    """End a fleet. Returns how many actors there were."""
    ended: int = cluster.ask(ray, directory.stop.remote, 30.0, "the directory")
    with suppress(Exception):
        ray.kill(directory)
    cluster.forget(fleet)
    return ended + 1


def start_behind(file: Path, fleet: str) -> None:
    """Start a fleet, with Ray on this machine, in a background process.

    Raises:
        FleetError: it does not start; with its error.
    """
    cluster.check_free(fleet)
    log = state_folder(fleet) / "fleet.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PROGRAM, "fleet", "run", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=sys.platform != "win32",
        )
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if "publishes at" in text:
            typer.echo(text.strip(), err=True)
            typer.echo(f"it keeps running; to look at it: mien fleet status {fleet}; its log is {log}", err=True)
            return
        time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise FleetError(f"the fleet did not start: {lines[-1] if lines else 'it said nothing'}; see {log}")


def show(found: FleetCondition, *, every: bool) -> None:
    """Show a fleet: problems first."""
    from rich.text import Text

    console = make_console()
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    headline = Text(found.fleet, style="bold").append(f"  {found.gateway or 'no gateway'}  {states}", style="not bold")
    console.print(headline, soft_wrap=True)
    if found.gateway_key and not found.gateway.startswith("tcp://127."):
        console.print(f"the gateway's key is {found.gateway_key}", soft_wrap=True)
    if found.problem:
        console.print(found.problem, style="red", soft_wrap=True)
    for problem in found.problems:
        console.print(f"{problem.session} does not run: {problem.reason}", style="yellow", soft_wrap=True)
    nodes = [
        (f"{node.name} ({node.id[:8]})", node.state, node.captures, node.pools, f"{node.cpus:g}", f"{node.free_cpus:g}",
         " ".join(f"{k}={v}" for k, v in node.labels.items() if k != "host" and not k.startswith("ray.io/")))
        for node in found.nodes
    ]  # fmt: skip
    print_rows(console, ("node", "state", ">captured", ">pools", ">cpus", ">free", "labels"), nodes)
    pools = [
        (pool.name, pool.node, pool.state, f"{pool.sessions}/{pool.room}", f"{pool.cpu_percent:.0f} %",
         f"{pool.rss_mb:.0f} MB")
        for pool in found.pools
    ]  # fmt: skip
    print_rows(console, ("pool", "node", "state", ">sessions", ">cpu", ">memory"), pools)
    rows = sorted(found.sessions, key=lambda session: session.state in ("running", "ended"))
    shown = rows if every else rows[:_MOST_ROWS]
    sessions = [
        (each.name, Text(each.state, style=_COLOURS.get(each.state, "red")), each.node, each.pool,
         f"{each.per_second:.0f}/s" if each.per_second else "",
         "" if each.p99_ms is None else f"{each.p99_ms:.0f} ms", each.moves or "", each.note)
        for each in shown
    ]  # fmt: skip
    print_rows(console, ("session", "state", "node", "pool", ">rate", ">p99", ">moves", ""), sessions)
    if len(shown) < len(rows):
        console.print(f"and {len(rows) - len(shown)} more; --all shows them")
