"""Measuring a person at rest from the page: the running capture workers measure, `mien calibrate`'s code stores.

The workers measure their rows before comparison: the devices stay open and the session continues. The result is not
used in this session; `--person` does that.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mien.config import BusConfig
from mien.errors import BusError, ConfigError, MienError
from mien.messages import WORKERS
from mien.models import baseline
from mien.models.baseline import SECONDS, SENTENCE, Person, Rest
from mien.stream.bus.choices import RestOffer
from mien.stream.bus.curve import host_of, is_loopback
from mien.stream.dashboard.choosing import Choosing
from mien.stream.dashboard.collector import Collector

_NAMES = {"video": "face", "audio": "voice"}


class PeopleOrder(msgspec.Struct, frozen=True):
    """A request from the page: list people, start measuring, store the measurement, or delete a person.

    Attributes:
        workers: to measure: "video" for the face, "audio" for the voice.
    """

    act: Literal["list", "begin", "keep", "delete"]
    name: str = ""
    workers: tuple[Literal["video", "audio"], ...] = ()


class Calibrating:
    """Measures, lists and deletes people for the page, where it may control the workers (`Choosing`).

    Args:
        collector: knows the session. bus: where its workers are. choosing: whether they accept choices.
    """

    def __init__(self, collector: Collector, bus: BusConfig, choosing: Choosing) -> None:
        self._collector, self._bus, self._choosing = collector, bus, choosing

    def carry_out(self, order: PeopleOrder) -> dict[str, Any]:
        """Carry out the page's request, and return the people there are now.

        Raises:
            MienError: not allowed here, a worker is missing or refuses, or too little face or voice was measured.
        """
        if not self._choosing.allowed:
            raise BusError("the page is served beyond this machine; dashboard.control = true lets it measure people")
        reply: dict[str, Any] = {}
        if order.act in ("begin", "keep"):
            self._check_here(order.workers, order.name)
        if order.act == "begin":
            baseline.check_name(order.name)
            self._begin(order.workers)
            reply = {"seconds": SECONDS, "sentence": SENTENCE if "audio" in order.workers else ""}
        elif order.act == "keep":
            found = self._take(order.workers)
            reply = {"path": str(baseline.store(order.name, found.get("video"), found.get("audio")))}
        elif order.act == "delete":
            baseline.forget(order.name)
        return reply | {"people": self._people()}

    def _people(self) -> list[dict[str, Any]]:
        with self._collector.lock:
            about = self._collector.about
        extractors = {spec.name: spec.extractor for spec in about.modalities} if about is not None else {}
        summaries: list[dict[str, Any]] = []
        for name in baseline.people():
            try:
                person = Person.load(name)
                summaries.append(person.summary(extractors.get("vision", ""), extractors.get("audio", "")))
                if not extractors:
                    summaries[-1]["state"] = ""  # no session to compare with
            except ConfigError as error:
                summaries.append({"name": name, "made": "", "face": None, "voice": None, "state": str(error)})
        return summaries

    def _check_here(self, workers: tuple[str, ...], name: str) -> None:
        """Check before instructing any worker: a rest is stored where rows are compared, on the capturing machine."""
        if not workers:
            raise ConfigError("choose the face, the voice, or both")
        for worker in workers:
            if not is_loopback(host_of(self._bus.address(worker))):
                raise BusError(f"the {worker} worker runs elsewhere: measure there, with mien calibrate {name}")

    def _begin(self, workers: tuple[str, ...]) -> None:
        for worker in workers:
            with self._choosing.chooser(worker) as chooser:
                chooser.choose(chooser.offer(), rest=SECONDS)

    def _take(self, workers: tuple[str, ...]) -> dict[str, Rest]:
        """The measurements, all or nothing."""
        found: dict[str, Rest] = {}
        missing: list[str] = []
        for worker in workers:
            with self._choosing.chooser(worker) as chooser:
                try:
                    offer = chooser.choose(chooser.offer(), rest=0.0)
                except MienError as error:
                    missing.append(str(error))
                    continue
            if offer.rest is None:
                missing.append(f"the {_NAMES[worker]} is still being measured: {offer.left_s or 0.0:.0f} s are left")
            else:
                found[worker] = _checked(offer.rest, worker)
        if missing or not found:
            raise BusError("nothing was stored: " + ("; ".join(missing) or "nothing was measured"))
        return found


def _checked(offer: RestOffer, worker: str) -> Rest:
    """A worker's measurement, validated for storage."""
    size = baseline.ROW if worker == "video" else baseline.VOICE_ROW
    if len(offer.mean) != size:
        raise BusError(f"the {worker} worker measured {len(offer.mean)} numbers, not {size}: for {WORKERS[worker]}")
    return Rest(offer.extractor, offer.seconds, list(offer.mean))
