"""Compiling and measuring in a process that ends, so that torch does not stay in the memory of those that run.

A network names the function that makes it (`Origin`), so that another process can make it too.
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

log = logging.getLogger(__name__)

_here = False  # whether this process is one that ends


class Order(msgspec.Struct, frozen=True):
    """A request to compile networks into the cache at `root`.

    Attributes:
        engine: "auto" first chooses one for the first network, by measuring.
    """

    networks: tuple[Origin, ...]
    engine: str
    precision: str
    threads: int
    root: str


class Reply(msgspec.Struct, frozen=True):
    """The reply. `choice`: of "auto", as JSON of `mien.engines.selection.Choice`. `error`: why it failed."""

    choice: msgspec.Raw = msgspec.Raw(b"null")
    error: str | None = None


def do_apart(networks: Sequence[Network], engine: str, precision: str, threads: int, root: Path) -> Reply | None:
    """Compile networks in a process of its own.

    Returns:
        None where that is not possible: this is that process, a network has no origin, or the process could not be
        started or died. The caller then does the work itself.

    Raises:
        EngineError: a network cannot be compiled.
    """
    origins = tuple(network.origin for network in networks if network.origin is not None)
    if _here or len(origins) != len(networks):
        return None
    order = msgspec.json.encode(Order(origins, engine, precision, threads, str(root)))
    command = [sys.executable, "-P", "-m", "mien.engines.apart"]
    try:
        ran = subprocess.run(command, input=order, stdout=subprocess.PIPE, check=True)
        reply = msgspec.json.decode(ran.stdout.splitlines()[-1], type=Reply)
    except (OSError, subprocess.CalledProcessError, msgspec.MsgspecError, IndexError) as error:
        log.warning("the process that compiles has failed (%s); compiling here", error)
        return None
    if reply.error is not None:
        raise EngineError(reply.error)
    return reply


def make(origin: Origin) -> Network:
    """The network of an origin."""
    module, _, function = origin.function.partition(":")
    network: Network = getattr(importlib.import_module(module), function)(**origin.arguments)
    return network


def _follow(order: Order) -> Reply:
    from mien.engines.cache import Cache
    from mien.engines.selection import choose_engine, find_usable, known_precision, open_backend

    root = Path(order.root)
    networks = [make(origin) for origin in order.networks]
    engine, precision, choice = order.engine, order.precision, None
    if engine == "auto":
        choice = choose_engine(networks[0], precision, order.threads, root)
        engine, precision = choice.engine, choice.precision
    backend = find_usable(engine)
    for network in networks if backend.cached else ():
        open_backend(network, backend, known_precision(precision), order.threads, Cache(root))
    return Reply(msgspec.Raw(msgspec.json.encode(choice)))


def main() -> None:
    """Do what standard input requests; the reply is the last line on standard output."""
    global _here
    _here = True
    try:
        reply: Any = _follow(msgspec.json.decode(sys.stdin.buffer.read(), type=Order))
    except MienError as error:
        reply = Reply(error=str(error))
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(reply) + b"\n")


if __name__ == "__main__":
    from mien.engines import apart

    apart.main()  # the module as others import it, and not this one, which is called __main__
