"""The `mien` command. One command a file; whatever is heavy is imported inside the command that needs it."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Annotated

import typer

import mien
from mien.errors import MienError

app = typer.Typer(
    name="mien",
    help="Real-time emotion recognition from face, voice and words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mien {mien.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# A file here is a command: its `command` function is registered under the file's name, or its `group` of commands.
for _module in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
    _imported = importlib.import_module(f"{__name__}.{_module}")
    if hasattr(_imported, "command"):
        app.command(_module)(_imported.command)
    elif hasattr(_imported, "group"):
        app.add_typer(_imported.group, name=_module)


_EXTRAS = {
    "matplotlib": "train", "sklearn": "train", "tensorboard": "train", "nicegui": "dashboard",
    "aiomqtt": "bridges", "pylsl": "bridges", "pythonosc": "bridges", "starlette": "bridges", "uvicorn": "bridges",
}  # fmt: skip


def main() -> None:
    """Entry point. An error that mien raised on purpose is one line and an exit code, never a traceback."""
    try:
        app()
    except MienError as error:
        typer.secho(f"mien: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "mien":
            raise
        # The base install is for subscribers; whatever else a command needs comes with an extra.
        extra = _EXTRAS.get(error.name.partition(".")[0], "live")
        typer.secho(
            f'mien: this command needs the package `{error.name}`; pip install "mien[{extra}]"',
            fg=typer.colors.RED,
            err=True,
        )
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output went away, for instance `mien watch --json | head`.
        sys.stderr.close()
        sys.exit(0)
