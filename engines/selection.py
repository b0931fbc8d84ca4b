"""Which engine runs a network: the one asked for, or the fastest measured here; the next that works if it fails."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from mien.engines.apart import compile_in_subprocess
from mien.engines.base import PRECISIONS, Array, Backend, Engine, Network, Precision, check_inputs
from mien.engines.cache import Cache, identify
from mien.errors import EngineError, suggestion

log = logging.getLogger(__name__)

# Name -> file and attribute, in order of preference (ties go to the first).
BACKENDS = {
    "onnx": ("mien.engines.onnx", "backend"),
    "openvino": ("mien.engines.openvino", "backend"),
    "tensorrt": ("mien.engines.tensorrt.engine", "backend"),
    "onnx-cuda": ("mien.engines.onnx", "cuda_backend"),
    "torch-cuda": ("mien.engines.torch_eager", "cuda_backend"),
    "torch": ("mien.engines.torch_eager", "backend"),
}
FALLBACKS = ("onnx", "torch")
MEASURE_S = 2.0
MEASURE_ROUNDS = 50
ADVANTAGE = 0.9  # a later engine must take less than this fraction of the time
IN_PLACE_OF = "in place of "  # prefix of a fallback's reason


class FallbackEngine(Engine):
    """The first of several engines that opens, with the rest as fallbacks if it fails on valid inputs.

    A GPU that runs out of memory or is removed ends neither a stream nor a worker: the next engine gets the same
    inputs at once, and `id` and `reason` describe it from then on.

    Args:
        network: run by all of them.
        candidates: a name each, and how to open it; opened only when needed.
        reason: why the first one was chosen.

    Attributes:
        engine: the current one.

    Raises:
        EngineError: none of them opens.
    """

    def __init__(self, network: Network, candidates: Iterable[tuple[str, Callable[[], Engine]]], reason: str) -> None:
        super().__init__("", network)
        self.reason = reason
        self._candidates = iter(candidates)
        self._failures: list[str] = []
        self._open_next()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return self.engine.infer(inputs)
        except EngineError as error:
            check_inputs(self.network, inputs)  # a caller's mistake must not trigger a fallback
            self._note(self.id, error)
        # Outside the handler, whose traceback keeps the failed engine's memory alive.
        self._open_next()
        return self.infer(inputs)

    def give_up(self, error: EngineError) -> None:
        """Switch to the next engine, after a caller that used the current one directly saw it fail.

        Raises:
            EngineError: there is none left.
        """
        self._note(self.id, error)
        self._open_next()

    def _open_next(self) -> None:
        for name, opened in self._candidates:
            try:
                self.engine = opened()
                self.id = self.engine.id
                return
            except EngineError as error:
                self._note(name, error)
        raise EngineError(f"no engine can run network {self.network.name!r}: {'; '.join(self._failures)}")

    def _note(self, name: str, error: EngineError) -> None:
        self._failures.append(f"{name}: {error}")
        self.reason = f"{IN_PLACE_OF}{'; '.join(self._failures)}"
        log.warning("engine %s is not used for %r: %s", name, self.network.name, error)


class Choice(msgspec.Struct, frozen=True):
    """What "auto" resolves to on this machine.

    Attributes:
        medians_ms: one inference of the network's example, per measured engine.
        refused: why the others were not, per engine.
    """

    engine: str
    precision: str
    reason: str
    medians_ms: dict[str, float] = {}
    refused: dict[str, str] = {}


def find_backend(name: str) -> Backend:
    """The backend of that name, whether or not it can run on this machine.

    Raises:
        EngineError: there is no such engine, or its file cannot be loaded.
    """
    _check_name(name)
    module, attribute = BACKENDS[name]
    try:
        backend: Backend = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        # One broken engine or library must not take the others down.
        raise EngineError(f"its file {module} cannot be loaded: {_describe(error)}") from error
    return backend


def find_usable(name: str) -> Backend:
    """The backend of that name, checked to be runnable on this machine.

    Raises:
        EngineError: there is no such engine, or it lacks something here (the message says how to get it).
    """
    backend = find_backend(name)
    try:
        missing = backend.missing()
    except Exception as error:
        raise EngineError(_describe(error)) from error
    if missing:
        raise EngineError(missing)
    return backend


def open_engine(
    network: Network, engine: str = "auto", precision: str = "fp32", threads: int = 1, cache: Path | None = None
) -> FallbackEngine:
    """The network, ready to run, verified against the reference's outputs.

    Args:
        engine: "auto", or a name in `BACKENDS`.
        precision: "fp32", "fp16" or "bf16".
        threads: CPU threads it may use.
        cache: folder of compiled forms; default: in the user's mien cache folder.

    Returns:
        An engine whose `id` says what it is and whose `reason` says why. If the requested one does not work, now or
        later, a warning is logged and the next that works takes over: never one that deviates from the reference.

    Raises:
        EngineError: there is no engine or precision of that name, or not even the reference can run the network.
    """
    wanted = known_precision(precision)
    reason = "asked for"
    if engine == "auto":
        choice = choose_engine(network, wanted, threads, cache)
        engine, wanted, reason = choice.engine, known_precision(choice.precision), choice.reason
    _check_name(engine)
    attempts: list[tuple[str, Precision]] = [(engine, wanted), (engine, "fp32")]
    attempts += [(name, "fp32") for name in FALLBACKS]

    def opener(name: str, kind: Precision) -> Callable[[], Engine]:
        return lambda: open_backend(network, find_usable(name), kind, threads, Cache(cache))

    candidates = ((f"{name}-{kind}", opener(name, kind)) for name, kind in dict.fromkeys(attempts))
    return FallbackEngine(network, candidates, reason)


def compile_together(
    networks: Sequence[Network], engine: str, precision: str, threads: int = 1, cache: Path | None = None
) -> None:
    """Compile networks in one process that `open_engine` is then asked for one by one, with the same arguments.

    `open_engine` meets the same errors again, replaces the engine and reports them.
    """
    with contextlib.suppress(Exception):  # libraries raise what they like
        backend, wanted = find_usable(engine), known_precision(precision)
        kind = wanted if wanted in backend.precisions else known_precision("fp32")
        Cache(cache).compile_missing(networks, backend, kind, threads)


def open_backend(network: Network, backend: Backend, precision: Precision, threads: int, cache: Cache) -> Engine:
    """The network on this backend and no other, verified.

    Raises:
        EngineError: it cannot run there, and why.
    """
    if precision not in backend.precisions:
        raise EngineError(f"{backend.name} cannot compute in {precision} here, only {', '.join(backend.precisions)}")
    try:
        return cache.open(network, backend, precision, threads)
    except EngineError:
        raise
    except Exception as error:
        # Libraries may raise anything; another engine may still work.
        log.debug("%s on %r", backend.name, network.name, exc_info=True)
        raise EngineError(_describe(error)) from error


def choose_engine(
    network: Network,
    precision: str = "fp32",
    threads: int = 1,
    cache: Path | None = None,
    also: Sequence[Network] = (),
) -> Choice:
    """The fastest engine for the network's example on this machine, among those that reproduce the reference.

    Measured once, in at most two seconds beyond compiling, then cached until the network, machine or library
    versions change.

    Args:
        also: networks to compile for the chosen engine in the same go, if it has to be measured.

    Raises:
        EngineError: there is no precision of that name, or no engine can run the network.
    """
    wanted = known_precision(precision)
    store = Cache(cache)
    usable, refused = usable_backends()
    kinds = dict.fromkeys((wanted, known_precision("fp32")))  # reduced precisions compete with float32
    candidates = [(backend, kind) for backend in usable for kind in kinds if kind in backend.precisions]
    facts = [identify(network, backend, kind) for backend, kind in candidates]
    key = hashlib.sha256(msgspec.json.encode([facts, threads], order="sorted")).hexdigest()
    path = store.root / f"{key}.choice.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Choice)
    except (OSError, msgspec.DecodeError):
        pass
    measured = compile_in_subprocess([network, *also], "auto", wanted, threads, store.writable_root())
    if measured is not None:
        return msgspec.json.decode(measured, type=Choice)
    engines: list[tuple[Backend, Precision, Engine]] = []
    for backend, kind in candidates:
        try:
            engines.append((backend, kind, open_backend(network, backend, kind, threads, store)))
        except EngineError as error:
            refused[f"{backend.name}-{kind}"] = str(error)
            log.warning("engine %s-%s is not a candidate for %r: %s", backend.name, kind, network.name, error)
    if not engines:
        raise EngineError(f"no engine can run network {network.name!r}: {'; '.join(refused.values())}")
    medians = _measure(network, [engine for _, _, engine in engines])
    best = 0
    for index, (_, _, engine) in enumerate(engines):
        if medians[engine.id] < ADVANTAGE * medians[engines[best][2].id]:
            best = index
    backend, kind, engine = engines[best]
    table = ", ".join(f"{name} {ms:.2f} ms" for name, ms in sorted(medians.items(), key=lambda item: item[1]))
    reason = f"measured on this machine: {table}" if len(engines) > 1 else "the only engine that can run here"
    choice = Choice(backend.name, kind, reason, medians, refused)
    log.info("engine %s for %r: %s", engine.id, network.name, reason)
    store.write_choice(path, choice)
    return choice


def usable_backends() -> tuple[list[Backend], dict[str, str]]:
    """The backends that can run on this machine, and why each of the others cannot."""
    usable: list[Backend] = []
    refused: dict[str, str] = {}
    for name in BACKENDS:
        try:
            usable.append(find_usable(name))
        except EngineError as error:
            refused[name] = str(error)
    return usable, refused


def _measure(network: Network, engines: Sequence[Engine]) -> dict[str, float]:
    """Median time of one inference in ms; engines take turns in random order to share the noise evenly."""
    times: dict[str, list[float]] = {engine.id: [] for engine in engines}
    turns = random.Random(0)
    order = list(engines)
    deadline = time.perf_counter() + MEASURE_S
    for round_number in range(MEASURE_ROUNDS):
        turns.shuffle(order)
        for engine in order:
            started = time.perf_counter()
            engine.infer(network.example)
            times[engine.id].append((time.perf_counter() - started) * 1e3)
        if time.perf_counter() > deadline and round_number > 0:
            break
    # Warm-up rounds fill caches and start threads.
    return {name: statistics.median(values[min(3, len(values) - 1) :]) for name, values in times.items()}


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        hint = suggestion(name, ["auto", *BACKENDS], "'")
        raise EngineError(f"there is no engine {name!r}; {hint}")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def known_precision(name: str) -> Precision:
    """The precision of that name.

    Raises:
        EngineError: there is none.
    """
    if name not in PRECISIONS:
        raise EngineError(f"there is no precision {name!r}; known: {', '.join(PRECISIONS)}")
    return name
