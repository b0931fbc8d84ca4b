"""`mien keys`: which machines may connect to this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.stream.bus.keyring import Keyring

group = typer.Typer(help="Manage the keys that connections between machines require.", no_args_is_help=True)

Folder = Annotated[str, typer.Option(help="Folder of the keys; default: the user's.")]


def _keyring(folder: str) -> Keyring:
    from mien.stream.bus.keyring import Keyring

    return Keyring(folder)


@group.command()
def new(
    folder: Folder = "",
    force: Annotated[bool, typer.Option("--force", help="Replace existing keys.")] = False,
) -> None:
    """Make this machine's keys, once, and print the public one."""
    from mien.stream.bus.keyring import to_hex

    keyring = _keyring(folder)
    identity = keyring.create(force=force)
    typer.echo(to_hex(identity.public))
    typer.echo(f"The secret key stays in {keyring.identity_path}. Give the line above to other machines.", err=True)


@group.command()
def add(
    name: Annotated[str, typer.Argument(help="A name for the machine.")],
    public: Annotated[str, typer.Argument(metavar="KEY", help="Its public key, as `mien keys list` shows it there.")],
    host: Annotated[str, typer.Option(help="Its host, if this machine connects to it.")] = "",
    folder: Folder = "",
) -> None:
    """Let a machine connect to this one. Running processes accept it at once."""
    peer = _keyring(folder).add(name, public, host)
    where = f", and is known at {peer.host}" if peer.host else ""
    typer.echo(f"{name} may connect{where}", err=True)


@group.command("list")
def list_all(folder: Folder = "", as_json: options.Json = False) -> None:
    """Show the public keys: this machine's, and those of the machines that may connect."""
    from mien.errors import KeysError
    from mien.files import json_text
    from mien.stream.bus.keyring import to_hex

    keyring = _keyring(folder)
    peers = {name: {"key": to_hex(peer.public), "host": peer.host} for name, peer in keyring.peers().items()}
    try:
        own, problem = to_hex(keyring.identity().public), ""
    except KeysError as error:
        own, problem = "", str(error)
    if as_json:
        typer.echo(json_text({"folder": str(keyring.folder), "key": own or None, "peers": peers}, indent=2))
    else:
        typer.echo(f"{'this machine':<20} {own or 'none: ' + problem}")
        for name, peer in peers.items():
            typer.echo(f"{name:<20} {peer['key']}" + (f"  at {peer['host']}" if peer["host"] else ""))
    for path in keyring.unreadable():
        typer.secho(f"mien: {path} cannot be read, so no machine is admitted by it", fg=typer.colors.YELLOW, err=True)


@group.command()
def revoke(name: Annotated[str, typer.Argument(help="Name of the machine.")], folder: Folder = "") -> None:
    """Revoke a machine's key. Running processes disconnect it within a second."""
    _keyring(folder).revoke(name)
    typer.echo(f"{name} may no longer connect", err=True)
