"""A capture worker's choices: publishes the available sources and faces, and applies choices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from mien.clock import Clock
from mien.config import Config
from mien.errors import ConfigError, SourceError, WireError
from mien.stream.bus.choices import (
    MAX_FACES,
    MAX_SOURCES,
    Choice,
    Offer,
    RestOffer,
    SourceOffer,
    decode_choice,
    encode_offer,
    offer_topic,
)
from mien.stream.bus.sockets import Publisher
from mien.stream.modalities.base import Modality
from mien.stream.processes.priority import lower_priority
from mien.stream.sources.devices import Choosable, choosable

_WAITING = 4  # queued choices; the oldest are dropped


class Choosing:
    """Receives choices on the worker's socket, as far as `bus.control` permits.

    Args:
        publisher: the worker's socket. worker: its name. run: its number.
        config: the session's. modality: what captures.

    Attributes:
        refused: choices that were malformed, for another worker, or not permitted.
    """

    def __init__(
        self, publisher: Publisher, worker: str, config: Config, run: int, clock: Clock, modality: Modality
    ) -> None:
        self.refused = 0
        self._publisher = publisher
        self._worker = worker
        self._config = config
        self._run = run
        self._clock = clock
        self._modality = modality
        self._section = "video" if worker == "video" else "audio"
        self._waiting: deque[Choice] = deque()
        self._is_asked = False
        self._lister = ThreadPoolExecutor(1, "devices", partial(lower_priority, thread=True))
        self._listing: Future[list[Choosable]] | None = None
        # No choices while a clip is played in full: the result would no longer be that clip's.
        if config.bus.control != "none" and not config.clip.fast:
            publisher.answer(offer_topic(config.session, worker), self._ask)
            publisher.on_choice = self._receive

    def take(self, using: Callable[[str, str], None]) -> bool:
        """Publish requested offers and apply choices, once the options are known.

        Args:
            using: called with the section of the configuration ("video", "audio") and its new source before the switch.

        Returns:
            Whether anything changed, so that a status is due.
        """
        if self._waiting and self._waiting[0].source is None:
            self._do(self._waiting.popleft(), [], using)
            return True
        if not self._is_asked and not self._waiting:
            return False
        if self._listing is None:
            self._listing = self._lister.submit(choosable, self._section, self._config, self._modality.used)
        if not self._listing.done():
            return False
        found, self._listing = self._listing.result(), None
        self._is_asked = False
        if not self._waiting:
            self._offer(found)
            return False
        self._do(self._waiting.popleft(), found, using)
        return True

    def is_opening(self) -> bool:
        """Whether the next `take` may open a device, which can block."""
        return bool(self._waiting) and self._listing is not None and self._listing.done()

    def close(self) -> None:
        """Stop accepting choices."""
        self._lister.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> None:
        self._is_asked = True

    def _receive(self, frame: bytes, is_local: bool) -> None:
        try:
            choice = decode_choice(frame)
        except WireError:
            self.refused += 1
            return
        allowed = is_local or self._config.bus.control == "keys"
        if not allowed or (choice.session, choice.worker) != (self._config.session, self._worker):
            self.refused += 1
            return
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            self.refused += 1
        self._waiting.append(choice)

    def _do(self, choice: Choice, found: list[Choosable], using: Callable[[str, str], None]) -> None:
        refused, rest = "", None
        try:
            if choice.rest is not None:
                rest = self._measure(choice.rest)
            elif choice.face is not None:
                self._modality.follow(None if choice.face == "largest" else choice.face)
            else:
                source = next((each.source for each in found if each.id == choice.source), None)
                if source is None:
                    raise SourceError("that source is no longer there; choose another")
                if source != self._modality.used:
                    self._modality.use(source)
                    if self._modality.resting is not None:
                        self._modality.measure(None)  # rows now come from another camera or microphone
                    using(self._section, source)
        except (SourceError, ConfigError) as error:
            refused = str(error)[:500]
        self._offer(found, choice.nonce, refused, rest)

    def _measure(self, seconds: float) -> RestOffer | None:
        """Start measuring a person at rest; with 0 return the measurement, None while it is not finished."""
        if seconds:
            self._modality.measure(seconds)
            return None
        measured = self._modality.resting
        if measured is None:
            raise SourceError("no measurement is in progress, perhaps because the source was changed; start again")
        if measured.left_s > 0:
            return None
        self._modality.measure(None)
        rest = measured.result()
        return RestOffer(rest.extractor, rest.seconds, tuple(rest.mean))

    def _offer(
        self, found: list[Choosable], answers: str = "", refused: str = "", rest: RestOffer | None = None
    ) -> None:
        measured = self._modality.resting
        used = self._modality.used
        faces = self._modality.faces()
        offer = Offer(
            session=self._config.session,
            worker=self._worker,
            run=self._run,
            t_ns=self._clock.now_ns(),
            sources=tuple(SourceOffer(each.id, each.name[:200]) for each in found[:MAX_SOURCES]),
            used=next((each.id for each in found if each.source == used), ""),
            faces=faces.boxes[:MAX_FACES] if faces is not None else (),
            following=faces.following if faces is not None else "",
            left_s=None if measured is None else measured.left_s,
            rest=rest,
            answers=answers,
            refused=refused,
        )
        self._publisher.send(encode_offer(offer), keep=False)
