"""Compile and benchmark in a short-lived subprocess, so that torch never stays in a long-running one's memory.

A network names the function that builds it (`Origin`), so that the subprocess can build it too.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mien.engines.base import Network, Origin
from mien.errors import EngineError, MienError
from mien.interrupts import withheld_interrupts

log = logging.getLogger(__name__)

_is_subprocess = False  # whether this process is the subprocess


# The arguments of `compile_in_subprocess`, as JSON.
Request = tuple[tuple[Origin, ...], str, str, int, str]
# As returned by `compile_in_subprocess`, and why it failed, if it did.
_Reply = tuple[msgspec.Raw, str | None]


def compile_in_subprocess(
    networks: Sequence[Network], engine: str, precision: str, threads: int, root: Path
) -> msgspec.Raw | None:
    """Compile networks into the cache at `root`, in a subprocess.

    Args:
        engine: "auto" first picks the fastest one for the first network.

    Returns:
        For "auto" a `mien.engines.selection.Choice` as JSON, else null.
        None if that is not possible: we are that subprocess, a network has no origin, or the subprocess did not start
        or died. The caller then compiles in-process.

    Raises:
        EngineError: a network cannot be compiled.
    """
    origins = tuple(network.origin for network in networks if network.origin is not None)
    if _is_subprocess or len(origins) != len(networks):
        return None
    request = msgspec.json.encode((origins, engine, precision, threads, str(root)))
    choice: msgspec.Raw
    command = [sys.executable, "-P", "-m", "mien.engines.apart"]
    try:
        with withheld_interrupts():  # it would answer Ctrl-C with a traceback
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with process:
            try:
                reply, _ = process.communicate(request)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        choice, failure = msgspec.json.decode(reply.splitlines()[-1], type=_Reply)
    except (OSError, subprocess.CalledProcessError, msgspec.MsgspecError, IndexError) as error:
        log.warning("the compile process failed (%s); compiling in this process", error)
        return None
    if failure is not None:
        raise EngineError(failure)
    return choice


def make(origin: Origin) -> Network:
    """Build the network of an origin."""
    module, _, function = origin[0].partition(":")
    network: Network = getattr(importlib.import_module(module), function)(**origin[1])
    return network


def _handle(request: Request) -> Any:
    from mien.engines.cache import Cache
    from mien.engines.selection import choose_engine, find_usable, known_precision, open_backend

    origins, engine, precision, threads, folder = request
    root, networks, choice = Path(folder), [make(origin) for origin in origins], None
    if engine == "auto":
        choice = choose_engine(networks[0], precision, threads, root)
        engine, precision = choice.engine, choice.precision
    backend = find_usable(engine)
    for network in networks if backend.cached else ():
        open_backend(network, backend, known_precision(precision), threads, Cache(root))
    return choice


def main() -> None:
    """Handle the request on standard input; the reply is the last line on standard output."""
    global _is_subprocess
    _is_subprocess = True
    try:
        reply: tuple[Any, str | None] = _handle(msgspec.json.decode(sys.stdin.buffer.read(), type=Request)), None
    except MienError as error:
        reply = None, str(error)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(reply) + b"\n")


if __name__ == "__main__":
    from mien.engines import apart

    apart.main()  # the importable module, not this copy, which is called __main__
