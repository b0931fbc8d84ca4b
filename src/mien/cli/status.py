"""`mien status`: the state of a running mien, once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.stream.monitoring.observer import Condition

_WELL = ("running", "ready", "starting", "ended")


def command(
    endpoint: options.Endpoint = "tcp://127.0.0.1:5560",
    session: options.OneSession = None,
    as_json: options.Json = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 3.0,
    keys: options.Keys = "",
) -> None:
    """Show processes, modalities, rates, drops and last errors once. Exits with 1 on a fault, 6 if nothing answers."""
    import msgspec

    from mien.errors import BusError
    from mien.stream.bus.subscriber import Subscriber, explain_silence, misdirected
    from mien.stream.monitoring.observer import Observer

    with Subscriber(endpoint, session=session, keys=keys) as subscriber:
        observers: dict[str, Observer] = {}
        began_s = time.monotonic()
        # Statuses are sent on subscription and once a second; a rate takes a moment longer.
        while time.monotonic() - began_s < min(timeout, 1.3) or (
            time.monotonic() - began_s < timeout
            and not (observers and all(each.condition().verdict != "down" for each in observers.values()))
        ):
            predictions = subscriber.wait(0.1)
            for name in subscriber.sessions:
                observer = observers.setdefault(name, Observer(subscriber, name, began_s))
                observer.take_in(prediction for prediction in predictions if prediction.session == name)
        conditions = [each.condition() for each in observers.values()]
        actual = misdirected(subscriber.statuses, endpoint)
        if actual is not None or not conditions:
            raise BusError(actual or explain_silence(endpoint, session, timeout, keys))
    for number, condition in enumerate(sorted(conditions, key=lambda each: each.session or "")):
        if as_json:
            typer.echo(msgspec.json.encode(condition).decode())
            continue
        if number:
            typer.echo()
        _show(condition, endpoint)
    if any(condition.verdict != "ok" for condition in conditions):
        raise typer.Exit(1)


def _show(condition: Condition, endpoint: str) -> None:
    from rich.text import Text

    from mien.cli._terminal import make_console, print_rows
    from mien.cli._view import plain

    console = make_console()
    colour = {"ok": "green", "degraded": "yellow", "down": "red"}[condition.verdict]
    latency = f", {condition.latency_ms:.0f} ms" if condition.latency_ms is not None else ""
    rate = f"{condition.predictions_per_s:.1f} predictions/s{latency}"
    headline = Text(condition.verdict, style=f"bold {colour}")
    headline.append(
        f"  session {condition.session or '?'} at {endpoint}  {rate}  {condition.model or ''}", style="not bold default"
    )
    console.print(headline, soft_wrap=True)
    processes = [
        (
            process.worker,
            Text(process.state, style="green" if process.state in _WELL else "yellow"),
            f"{process.fps:.0f}/s" if process.fps else "",
            _with_unit(process.lag_ms, "ms"),
            _with_unit(process.cpu_percent, "%"),
            _with_unit(process.rss_mb, "MB"),
            "" if process.restarts is None else process.restarts,
            ", ".join(f"{cause} {count}" for cause, count in process.drops.items()),
        )
        for process in condition.processes
    ]
    columns = ("process", "state", ">rate", ">lag", ">cpu", ">memory", ">restarts", "drops")
    print_rows(console, columns, processes)
    modalities = [
        (each.name, f"{each.share:.0%}", _with_unit(each.age_ms, "ms"),
         Text(f"masked: {each.masked}" if each.masked else "", style="yellow"))
        for each in condition.modalities
    ]  # fmt: skip
    if modalities:
        print_rows(console, ("modality", ">share", ">age", ""), modalities)
    for process in condition.processes:
        if process.source is not None:
            faces = {"chosen": ", following a face that was chosen", "largest": ", following the largest face"}
            used = f"{process.worker} takes {process.source}{faces.get(process.following or '', '')}"
            console.print(plain(used), style="dim", soft_wrap=True)
        if process.last_error:
            console.print(f"last error of {process.worker}: {process.last_error}", soft_wrap=True)
    if condition.lost:
        console.print(f"{condition.lost} predictions were lost in transit")


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"
