"""`mien bridge`: predictions for programs that speak WebSocket, OSC, LSL or MQTT."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.stream.bridges.feed import Feed

group = typer.Typer(
    help="Forward predictions over WebSocket, OSC, LSL or MQTT, until Ctrl-C. Needs the extra `bridges`.",
    no_args_is_help=True,
)

Endpoint = Annotated[str, typer.Argument(help="Address that mien publishes on.")]
Rate = Annotated[float | None, typer.Option("--rate-hz", min=0.01, help="Maximum predictions per second and session.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the final counts as JSON.")]
Bridge = Callable[[Any, Callable[[], bool]], None]  # runs on a feed until told to stop


def _run(
    bridge: Bridge,
    endpoint: Endpoint = "tcp://127.0.0.1:5560",
    session: options.OneSession = None,
    rate_hz: Rate = None,
    keys: options.Keys = "",
    seconds: options.Seconds = None,
    as_json: AsJson = False,
) -> None:
    """Run a bridge until Ctrl-C, and report on it."""
    import logging
    import time
    from dataclasses import asdict

    from mien.cli._terminal import ending_signals
    from mien.files import json_text
    from mien.stream.bridges.feed import Counts, Feed

    logging.basicConfig(level=logging.WARNING, format="mien bridge: %(message)s")
    deadline_s = time.monotonic() + seconds if seconds else None
    with (
        ending_signals() as stopping,
        contextlib.closing(Feed(Counts(), endpoint, session=session, keys=keys, rate_hz=rate_hz)) as feed,
    ):
        bridge(feed, lambda: stopping.is_set() or (deadline_s is not None and time.monotonic() > deadline_s))
    if as_json:
        typer.echo(json_text(asdict(feed.counts)))
    else:
        typer.echo(str(feed.counts), err=True)


def _command(rate_hz: float | None = None) -> Callable[[Callable[..., Bridge]], Callable[..., Bridge]]:
    """Make a command of the group from a function that creates a bridge: its options, and those of `_run`."""

    def register(make: Callable[..., Bridge]) -> Callable[..., Bridge]:
        own = inspect.signature(make, eval_str=True).parameters
        _, endpoint, *shared = inspect.signature(_run, eval_str=True).parameters.values()
        shared = [each.replace(default=rate_hz) if each.name == "rate_hz" else each for each in shared]

        def command(**given: Any) -> None:
            _run(make(**{name: given.pop(name) for name in own}), **given)

        parameters = [endpoint, *own.values(), *shared]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        group.command(make.__name__, help=make.__doc__)(command)
        return make

    return register


@_command()
def ws(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback, clients need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any.")] = 5590,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of a page that may connect, as http://localhost:8000. Repeatable."),
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="MIEN_BRIDGE_TOKEN", help="Required beyond loopback; default: random.")
    ] = "",
) -> Bridge:
    """JSON over WebSocket and server-sent events, and an overlay for streaming software."""
    import asyncio

    from mien.stream.bridges.web import WebOutlet
    from mien.stream.dashboard.server import serve_app, take_place

    def bridge(feed: Feed, is_stopping: Callable[[], bool]) -> None:
        place = take_place(host, port, token, "choose another with --port")

        async def serve() -> None:
            outlet = WebOutlet(place, frozenset(page.lower().rstrip("/") for page in origin or ()), feed.counts)
            async with _reading(feed, outlet, is_stopping):
                await serve_app(outlet.app, place, is_stopping, lambda url: typer.echo(_described(url), err=True))

        asyncio.run(serve())

    return bridge


@_command()
def osc(
    to: Annotated[str, typer.Option(help="HOST:PORT to send to, unencrypted.")] = "127.0.0.1:9000",
) -> Bridge:
    """OSC messages over UDP, /mien/SESSION/..., for music, lighting and media software."""
    from mien.stream.bridges.osc import OscOutlet

    return _sending(lambda feed: OscOutlet(*_host_and_port(to, 9000), feed.counts), f"OSC to {to}")


@_command()
def lsl() -> Bridge:
    """Lab Streaming Layer: the streams mien-prediction and mien-marker, on LSL's clock."""
    from mien.stream.bridges.lsl import LslOutlet

    streams = "LSL streams mien-prediction and mien-marker"
    return _sending(lambda feed: LslOutlet(feed.endpoint, feed.counts, feed.keys), streams)


@_command(rate_hz=2.0)
def mqtt(
    broker: Annotated[str, typer.Option(help="HOST:PORT of the broker.")] = "127.0.0.1:1883",
    prefix: Annotated[str, typer.Option(help="Prefix of all topics.")] = "mien",
    qos: Annotated[int, typer.Option(min=0, max=2, help="Quality of service.")] = 0,
    username: Annotated[
        str | None, typer.Option(help="User name; the password is read from MIEN_MQTT_PASSWORD.")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt, and check the broker's certificate.")] = False,
    discovery: Annotated[str, typer.Option(help="Home Assistant's discovery prefix; '' for none.")] = "homeassistant",
) -> Bridge:
    """MQTT, with retained values and discovery by Home Assistant."""
    import asyncio
    import contextlib
    import os

    from mien.stream.bridges.mqtt import Broker, MqttOutlet

    host, port = _host_and_port(broker, 8883 if tls else 1883)
    password = os.environ.get("MIEN_MQTT_PASSWORD")
    target = Broker(host, port, username, password, tls, prefix.rstrip("/"), qos, discovery.rstrip("/"))

    def bridge(feed: Feed, is_stopping: Callable[[], bool]) -> None:
        async def serve() -> None:
            outlet = MqttOutlet(target, feed.counts)
            serving = asyncio.create_task(outlet.serve())
            async with _reading(feed, outlet, is_stopping):
                while not is_stopping() and not serving.done():
                    await asyncio.wait({serving}, timeout=0.1)
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(serving, timeout=5)

        typer.echo(f"MQTT to {broker} under {target.prefix}/; Ctrl-C ends", err=True)
        # On Windows aiomqtt needs an event loop that can watch sockets.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if os.name == "nt" else None) as runner:
            runner.run(serve())

    return bridge


def _sending(open_outlet: Callable[[Feed], Any], what: str) -> Bridge:
    """Sends predictions from the thread that reads the bus."""

    def bridge(feed: Feed, is_stopping: Callable[[], bool]) -> None:
        with contextlib.closing(open_outlet(feed)) as outlet:
            typer.echo(f"{what}; Ctrl-C ends", err=True)
            feed.run(outlet.send, is_stopping)

    return bridge


@contextlib.asynccontextmanager
async def _reading(feed: Feed, outlet: Any, is_stopping: Callable[[], bool]) -> AsyncIterator[None]:
    """Reads the bus in its own thread while an event loop serves the peers."""
    import asyncio

    ended = False
    task = asyncio.create_task(asyncio.to_thread(feed.run, outlet.send, lambda: ended or is_stopping()))
    try:
        yield
    finally:
        ended = True
        await task


def _described(url: str) -> str:
    base, _, token = url.partition("/?token=")
    query = f"?token={token}" if token else ""
    return f"{base}/ws{query}, {base}/events{query} and {base}/overlay{query}; Ctrl-C ends"


def _host_and_port(address: str, default: int) -> tuple[str, int]:
    from mien.errors import ConfigError

    host, colon, port = address.rpartition(":")
    if not colon or "]" in port:
        host, port = address, str(default)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
