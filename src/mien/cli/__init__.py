"""The `mien` command. One command a file; whatever is heavy is imported inside the command that needs it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Annotated

import typer

import mien
from mien.cli._streams import GuardedStreams, ReaderGoneError
from mien.errors import MienError

app = typer.Typer(
    name="mien",
    help="Real-time emotion recognition from face, voice and words.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
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


# A file here is a command: its `command` function is registered under the file's name, or its `group` of commands.
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
    """Entry point. An error that mien raised on purpose is one line and an exit code, never a traceback."""
    _leave_deleted_folder()
    with GuardedStreams():
        try:
            code = _run()
            sys.stdout.flush()
        except ReaderGoneError:
            code = 0
        except MienError as error:
            _complain(str(error))
            code = error.exit_code
        except ModuleNotFoundError as error:
            if not error.name or error.name.partition(".")[0] == "mien":
                raise
            # The base install is for subscribers; whatever else a command needs comes with an extra.
            extra = _EXTRAS.get(error.name.partition(".")[0], "live")
            from mien.install import install_command

            _complain(f"this command needs the package `{error.name}`; {install_command(extra)}")
            code = 1
    sys.exit(code)


def _leave_deleted_folder() -> None:
    """Libraries cannot be loaded from a working folder that was removed. In /proc no relative name makes a file."""
    try:
        os.getcwd()
    except OSError:
        os.chdir("/proc" if os.path.isdir("/proc") else os.path.abspath(os.sep))


def _run() -> int | str | None:
    """Typer's exit code: it ends the interpreter, and what is left to write is to be checked first."""
    try:
        app(prog_name="mien")  # also as `python -m mien`: shells complete by this name
    except SystemExit as ended:
        return ended.code
    return 0


def _complain(text: str) -> None:
    typer.secho(f"mien: {text}", fg=typer.colors.RED, err=True)
