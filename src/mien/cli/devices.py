"""`mien devices`: the cameras and microphones that are there."""

from __future__ import annotations

from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List cameras and microphones as values for `--camera` and `--mic`, without opening them."""
    from mien.files import json_text
    from mien.stream.sources.devices import cameras, microphones

    found = {"camera": cameras(), "mic": microphones()}
    if as_json:
        typer.echo(json_text({k: [{"name": each.name, "source": each.source} for each in v] for k, v in found.items()}))
        return
    for option, devices in found.items():
        kind = "camera" if option == "camera" else "microphone"
        typer.echo(f"{kind}s:" if devices else f"no {kind} found")
        for device in devices:
            typer.echo(f"  --{option} {device.source!r}  {device.name}")
    if not any(found.values()):
        typer.echo(
            "Files and network cameras work too: --clip FILE, --camera ADDRESS; mien demo plays a sample.", err=True
        )
