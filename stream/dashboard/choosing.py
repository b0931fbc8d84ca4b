"""Choosing camera, microphone and face on the page: asks the capture workers, and instructs them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mien.config import BusConfig
from mien.errors import BusError
from mien.stream.bus.choices import Place
from mien.stream.bus.chooser import Chooser
from mien.stream.dashboard.collector import Collector

_OFFER_S = 10.0  # listing devices takes a moment
_ALIVE_S = 3.0  # workers send a status once a second


class ChoiceRequest(msgspec.Struct, frozen=True):
    """The page's request: the id of a source, or a face; `worker` alone: list the options."""

    worker: Literal["video", "audio"]
    source: str | None = None
    face: Place | Literal["largest"] | None = None

    @property
    def chooses(self) -> bool:
        """Whether it changes anything, or only asks."""
        return self.source is not None or self.face is not None


class Choosing:
    """Sends the page's choices to the workers, where that is allowed.

    Args:
        collector: knows which workers are there. bus: where they are.
        allowed: False if the page is served to other machines and `dashboard.control` does not permit it.

    Attributes:
        allowed: as given.
    """

    def __init__(self, collector: Collector, bus: BusConfig, *, allowed: bool) -> None:
        self._collector = collector
        self._bus = bus
        self.allowed = allowed

    @property
    def workers(self) -> list[str]:
        """The workers that accept choices; none for a replay or in a fleet. Call with the lock held."""
        about = self._collector.about
        if not self.allowed or (about is not None and about.origin == "replay") or self._collector.is_elsewhere:
            return []
        names = ("video", "audio", "text")
        return [name for name in names if self._collector.status_age_s(name) < _ALIVE_S]

    def carry_out(self, request: ChoiceRequest) -> dict[str, Any]:
        """Carry out the page's request, and return the new state. Takes as long as opening a device.

        Raises:
            BusError: not allowed here, there is no such worker, or it refused.
        """
        if not self.allowed:
            raise BusError("the page is served beyond this machine; dashboard.control = true lets it choose")
        with self._collector.lock:
            workers = self.workers
        # Speech recognition has a source of its own.
        followers = ["text"] if request.worker == "audio" and request.source is not None and "text" in workers else []
        offer = None
        for worker in (request.worker, *followers):
            with self.chooser(worker) as chooser:
                found = chooser.offer(_OFFER_S)
                if request.chooses:
                    found = chooser.choose(found, source=request.source, face=request.face)
                offer = offer or found
        answer: dict[str, Any] = msgspec.to_builtins(offer)
        return answer

    def chooser(self, worker: str) -> Chooser:
        """A connection to a worker.

        Raises:
            BusError: it is not there.
        """
        with self._collector.lock:
            workers = self.workers
            session = next((status.session for status in self._collector.statuses.values()), None)
        if worker not in workers:
            raise BusError(f"no {worker} worker is there")
        return Chooser(self._bus.address(worker), worker, session, self._bus.keys)
