"""What the page may change at the capture workers: camera, microphone, face, and measuring a person at rest.

A person is measured by the running workers, before their rows are compared with anybody: the devices stay open and
the session continues. `mien calibrate`'s code stores the result, which only a session with `--person` uses.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mien.config import BusConfig
from mien.errors import BusError, ConfigError, MienError
from mien.models import baseline
from mien.models.baseline import SECONDS, SENTENCE, Person, Rest
from mien.stream.bus.choices import Place
from mien.stream.bus.chooser import Chooser
from mien.stream.bus.curve import host_of, is_loopback
from mien.stream.dashboard.collector import Collector

_OFFER_S = 10.0  # listing devices takes a moment
_ALIVE_S = 3.0  # workers send a status once a second
_MEASURED = {"video": ("face", baseline.ROW), "audio": ("voice", baseline.VOICE_ROW)}  # by worker: name, row size


class ChoiceRequest(msgspec.Struct, frozen=True):
    """The page's request: the id of a source, or a face; `worker` alone: list the options."""

    worker: Literal["video", "audio"]
    source: str | None = None
    face: Place | Literal["largest"] | None = None

    @property
    def chooses(self) -> bool:
        """Whether it changes anything, or only asks."""
        return self.source is not None or self.face is not None


class PeopleRequest(msgspec.Struct, frozen=True):
    """The page's request to list people, start measuring, store the measurement, or delete a person.

    Attributes:
        workers: to measure: "video" for the face, "audio" for the voice.
    """

    act: Literal["list", "begin", "keep", "delete"]
    name: str = ""
    workers: tuple[Literal["video", "audio"], ...] = ()


class Control:
    """Carries out the page's requests at the workers, where that is allowed.

    Args:
        collector: knows which workers are there. bus: where they are.
        allowed: False if the page is served to other machines and `dashboard.control` does not permit it.
    """

    def __init__(self, collector: Collector, bus: BusConfig, *, allowed: bool) -> None:
        self._collector, self._bus, self._allowed = collector, bus, allowed

    @property
    def workers(self) -> list[str]:
        """The workers that accept choices; none for a replay or in a fleet. Call with the lock held."""
        about = self._collector.about
        if not self._allowed or (about is not None and about.origin == "replay") or self._collector.is_elsewhere:
            return []
        names = ("video", "audio", "text")
        return [name for name in names if self._collector.status_age_s(name) < _ALIVE_S]

    def choose(self, request: ChoiceRequest) -> dict[str, Any]:
        """Carry out a choice, and return the new state. Takes as long as opening a device.

        Raises:
            BusError: not allowed here, there is no such worker, or it refused.
        """
        self._check_allowed("choose")
        with self._collector.lock:
            workers = self.workers
        # Speech recognition has a source of its own.
        followers = ["text"] if request.worker == "audio" and request.source is not None and "text" in workers else []
        offer = None
        for worker in (request.worker, *followers):
            with self._chooser(worker) as chooser:
                found = chooser.offer(_OFFER_S)
                if request.chooses:
                    found = chooser.choose(found, source=request.source, face=request.face)
                offer = offer or found
        answer: dict[str, Any] = msgspec.to_builtins(offer)
        return answer

    def people(self, request: PeopleRequest) -> dict[str, Any]:
        """Carry out a request about people, and return those there are now.

        Raises:
            MienError: not allowed here, a worker is missing or refuses, or too little face or voice was measured.
        """
        self._check_allowed("measure people")
        reply: dict[str, Any] = {}
        if request.act in ("begin", "keep"):
            self._check_here(request.workers, request.name)
        if request.act == "begin":
            baseline.check_name(request.name)
            for worker in request.workers:
                with self._chooser(worker) as chooser:
                    chooser.choose(chooser.offer(), rest=SECONDS)
            reply = {"seconds": SECONDS, "sentence": SENTENCE if "audio" in request.workers else ""}
        elif request.act == "keep":
            found = self._measured(request.workers)
            reply = {"path": str(baseline.store(request.name, found.get("video"), found.get("audio")))}
        elif request.act == "delete":
            baseline.forget(request.name)
        return reply | {"people": self._stored()}

    def _check_allowed(self, what: str) -> None:
        if not self._allowed:
            raise BusError(f"the page is served beyond this machine; dashboard.control = true lets it {what}")

    def _chooser(self, worker: str) -> Chooser:
        with self._collector.lock:
            workers = self.workers
            session = next((status.session for status in self._collector.statuses.values()), None)
        if worker not in workers:
            raise BusError(f"no {worker} worker is there")
        return Chooser(self._bus.address(worker), worker, session, self._bus.keys)

    def _check_here(self, workers: tuple[str, ...], name: str) -> None:
        """Check before instructing any worker: a rest is stored where rows are compared, on the capturing machine."""
        if not workers:
            raise ConfigError("choose the face, the voice, or both")
        for worker in workers:
            if not is_loopback(host_of(self._bus.address(worker))):
                raise BusError(f"the {worker} worker runs elsewhere: measure there, with mien calibrate {name}")

    def _measured(self, workers: tuple[str, ...]) -> dict[str, Rest]:
        """The measurements, all or nothing."""
        found: dict[str, Rest] = {}
        missing: list[str] = []
        for worker in workers:
            name, size = _MEASURED[worker]
            with self._chooser(worker) as chooser:
                try:
                    offer = chooser.choose(chooser.offer(), rest=0.0)
                except MienError as error:
                    missing.append(str(error))
                    continue
            rest = offer.rest
            if rest is None:
                missing.append(f"the {name} is still being measured: {offer.left_s or 0.0:.0f} s are left")
            elif len(rest.mean) != size:
                raise BusError(f"the {worker} worker measured {len(rest.mean)} numbers, not {size}")
            else:
                found[worker] = Rest(rest.extractor, rest.seconds, list(rest.mean))
        if missing or not found:
            raise BusError("nothing was stored: " + ("; ".join(missing) or "nothing was measured"))
        return found

    def _stored(self) -> list[dict[str, Any]]:
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
