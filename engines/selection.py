"""Which engine runs a network: the one asked for, or the one that is best here; else the next that works."""

from __future__ import annotations

import difflib
import importlib
import logging
from pathlib import Path

from mien.engines.base import PRECISIONS, Backend, Engine, Network, Precision
from mien.engines.cache import Cache
from mien.errors import EngineError

log = logging.getLogger(__name__)

# Name -> file and attribute. The order is the order of preference where nothing was measured.
BACKENDS = {
    "onnx": ("mien.engines.onnx", "backend"),
    "onnx-cuda": ("mien.engines.onnx", "cuda_backend"),
    "torch": ("mien.engines.torch_eager", "backend"),
}
FALLBACKS = ("onnx", "torch")


def find_backend(name: str) -> Backend:
    """The backend of that name, whether or not this machine can run it.

    Raises:
        EngineError: there is no such engine.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, [*BACKENDS, "auto"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(['auto', *BACKENDS])}"
        raise EngineError(f"there is no engine {name!r}; {hint}")
    module, attribute = BACKENDS[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)
    return backend


def open_engine(
    network: Network, engine: str = "auto", precision: str = "fp32", threads: int = 1, cache: Path | None = None
) -> Engine:
    """The network, ready to run, after it has reproduced the reference's outputs.

    Args:
        engine: "auto", or a name in `BACKENDS`.
        precision: "fp32", "fp16" or "bf16".
        threads: CPU threads it may use.
        cache: folder of compiled forms; by default in mien's cache folder of this user.

    Returns:
        An engine whose `id` says what it is and whose `reason` says why. What was asked for but cannot be had is
        logged as a warning and replaced by the next that works: never by one that gives other numbers.

    Raises:
        EngineError: there is no engine or precision of that name, or not even the reference can run the network.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"there is no precision {precision!r}; known are {', '.join(PRECISIONS)}")
    wanted: Precision = precision
    attempts: list[tuple[str, Precision]] = []
    if engine != "auto":
        find_backend(engine)
        attempts += [(engine, wanted), (engine, "fp32")]
    attempts += [(name, "fp32") for name in FALLBACKS]
    failures: list[str] = []
    for name, candidate in dict.fromkeys(attempts):
        backend = find_backend(name)
        try:
            opened = open_backend(network, backend, candidate, threads, Cache(cache))
        except EngineError as error:
            failures.append(f"{name}-{candidate}: {error}")
            log.warning("engine %s-%s is not used for %r: %s", name, candidate, network.name, error)
            continue
        opened.reason = (
            f"in place of {'; '.join(failures)}" if failures else "default" if engine == "auto" else "asked for"
        )
        return opened
    raise EngineError(f"no engine can run network {network.name!r}: {'; '.join(failures)}")


def open_backend(network: Network, backend: Backend, precision: Precision, threads: int, cache: Cache) -> Engine:
    """The network on this backend and no other, verified.

    Raises:
        EngineError: why that cannot be.
    """
    missing = backend.missing()
    if missing:
        raise EngineError(missing)
    if precision not in backend.precisions:
        raise EngineError(f"{backend.name} cannot compute in {precision} here, only {', '.join(backend.precisions)}")
    return cache.open(network, backend, precision, threads)
