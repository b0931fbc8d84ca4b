"""`mien follow`: choosing which of several faces to follow."""

from __future__ import annotations

from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    whom: Annotated[
        str | None,
        typer.Argument(
            metavar="FACE", help="Number from the left, position X,Y (0 to 1), or largest; without it, list the faces."
        ),
    ] = None,
    endpoint: Annotated[str, typer.Option(help="Address that mien publishes on.")] = "tcp://127.0.0.1:5560",
    session: Annotated[str | None, typer.Option(help="Name of the session.")] = None,
    keys: options.Keys = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the faces as JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the video worker.")] = 5.0,
) -> None:
    """List the faces in view, or choose the one that a running mien follows until it leaves."""
    import msgspec

    from mien.errors import BusError
    from mien.stream.bus.chooser import Chooser
    from mien.stream.dashboard.launch import bus_config

    place = _place(whom)
    with Chooser(bus_config(endpoint, keys).address("video"), "video", session, keys) as chooser:
        offer = chooser.offer(timeout)
        if isinstance(place, int):
            if not 1 <= place <= len(offer.faces):
                raise BusError(f"there is no face {place}: {len(offer.faces)} in view; `mien follow` lists them")
            left, top, right, bottom = offer.faces[place - 1]
            place = (min(max((left + right) / 2, 0.0), 1.0), min(max((top + bottom) / 2, 0.0), 1.0))
        if place is not None:
            offer = chooser.choose(offer, face=place, timeout_s=timeout)
    if as_json:
        typer.echo(msgspec.json.encode({"faces": offer.faces, "following": offer.following}).decode())
        return
    following = {"largest": "following the largest", "chosen": "following the chosen one"}
    faces = "1 face" if len(offer.faces) == 1 else f"{len(offer.faces)} faces"
    typer.echo(f"{faces} in view, {following.get(offer.following, 'no face can be chosen')}")
    if whom is None:
        for number, (left, top, right, bottom) in enumerate(offer.faces, 1):
            typer.echo(f"  {number}  at {(left + right) / 2:.2f},{(top + bottom) / 2:.2f}, {right - left:.2f} wide")


def _place(whom: str | None) -> tuple[float, float] | int | str | None:
    """Parse a point, a face's number from the left, or "largest"."""
    from mien.errors import ConfigError

    if whom is None or whom == "largest":
        return whom
    if whom.isdigit():
        return int(whom)
    try:
        x, y = map(float, whom.split(","))
        if 0.0 <= x <= 1.0 and 0.0 <= y <= 1.0:
            return x, y
    except ValueError:
        pass
    raise ConfigError(f"{whom!r} is not a face: give its number from the left, X,Y between 0 and 1, or largest")
