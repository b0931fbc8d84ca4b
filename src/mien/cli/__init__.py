"""The `mien` command. One file per command; heavy modules are imported inside the command that needs them."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Annotated

import typer

import mien
from mien.cli._streams import ReaderGoneError, guarded_streams
from mien.errors import MienError

app = typer.Typer(
    name="mien",
    help="Real-time emotion recognition from face, voice and words.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from mien.install import commit

        known = commit()
        typer.echo(f"mien {mien.__version__}" + (f" (commit {known})" if known else ""))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print version and commit.")
    ] = False,
) -> None:
    pass


# Each file here is a command: its `command` function, or its `group` of commands, is registered under the file's name.
for _module in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
    _imported = importlib.import_module(f"{__name__}.{_module}")
    if hasattr(_imported, "command"):
        app.command(_module)(_imported.command)
    elif hasattr(_imported, "group"):
        app.add_typer(_imported.group, name=_module)


_EXTRAS = {
    "matplotlib": "train", "tensorboard": "train", "nicegui": "dashboard",
    "pandas": "features", "pyarrow": "features",
    "aiomqtt": "bridges", "pylsl": "bridges", "pythonosc": "bridges", "starlette": "bridges", "uvicorn": "bridges",
    "ray": "fleet",
}  # fmt: skip


def main() -> None:
    """Entry point. A `MienError` becomes one line and an exit code, never a traceback."""
    _leave_deleted_folder()
    with guarded_streams():
        try:
            code = _run()
            sys.stdout.flush()
        except ReaderGoneError:
            code = 0
        except MienError as error:
            _print_error(str(error))
            code = error.exit_code
        except ModuleNotFoundError as error:
            if not error.name or error.name.partition(".")[0] == "mien":
                raise
            # The base install is for subscribers; everything else comes with an extra.
            extra = _EXTRAS.get(error.name.partition(".")[0], "live")
            from mien.install import install_command

            _print_error(f"this command needs the package `{error.name}`; {install_command(extra)}")
            code = 1
    sys.exit(code)


def _leave_deleted_folder() -> None:
    """Libraries cannot be loaded in a deleted working folder. In /proc no relative name creates a file."""
    try:
        os.getcwd()
    except OSError:
        os.chdir("/proc" if os.path.isdir("/proc") else os.path.abspath(os.sep))


def _run() -> int | str | None:
    """Run the app and return its exit code, instead of exiting: output must be flushed and checked first."""
    try:
        app(prog_name="mien")  # also as `python -m mien`: shell completion uses this name
    except SystemExit as ended:
        return ended.code
    return 0


def _print_error(text: str) -> None:
    typer.secho(f"mien: {text}", fg=typer.colors.RED, err=True)
