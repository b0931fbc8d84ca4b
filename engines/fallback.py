"""An engine that falls back to the next one when it fails, at start-up or in mid-stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from mien.engines.base import Array, Engine, Network, check_inputs
from mien.errors import EngineError

log = logging.getLogger(__name__)

IN_PLACE_OF = "in place of "  # prefix of a fallback's reason


class FallbackEngine(Engine):
    """The first of several engines that opens, with the rest as fallbacks if it fails on valid inputs.

    A GPU that runs out of memory or is removed ends neither a stream nor a worker: the next engine gets the same
    inputs at once, and `id` and `reason` describe it from then on.

    Args:
        network: run by all of them.
        candidates: a name each, and how to open it; opened only when needed.
        reason: why the first one was chosen.

    Raises:
        EngineError: none of them opens.
    """

    def __init__(self, network: Network, candidates: Iterable[tuple[str, Callable[[], Engine]]], reason: str) -> None:
        super().__init__("", network)
        self.reason = reason
        self._candidates = iter(candidates)
        self._failures: list[str] = []
        self._engine = self._open_next()
        self.id = self._engine.id

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return self._engine.infer(inputs)
        except EngineError as error:
            check_inputs(self.network, inputs)  # a caller's mistake must not trigger a fallback
            self._note(self.id, error)
        # Outside the handler, whose traceback keeps the failed engine's memory alive.
        self._engine = self._open_next()
        self.id = self._engine.id
        return self.infer(inputs)

    @property
    def engine(self) -> Engine:
        """The current engine."""
        return self._engine

    def give_up(self, error: EngineError) -> None:
        """Switch to the next engine, after a caller that used the current one directly saw it fail.

        Raises:
            EngineError: there is none left.
        """
        self._note(self.id, error)
        self._engine = self._open_next()
        self.id = self._engine.id

    def _open_next(self) -> Engine:
        for name, opened in self._candidates:
            try:
                return opened()
            except EngineError as error:
                self._note(name, error)
        raise EngineError(f"no engine can run network {self.network.name!r}: {'; '.join(self._failures)}")

    def _note(self, name: str, error: EngineError) -> None:
        self._failures.append(f"{name}: {error}")
        self.reason = f"{IN_PLACE_OF}{'; '.join(self._failures)}"
        log.warning("engine %s is not used for %r: %s", name, self.network.name, error)
