"""The directory's connection to one actor: one call at a time, and what is known of the actor."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from mien.stream.fleet.cluster import reason
from mien.stream.fleet.orders import WHOLE, Trusted

_EVERY_S = 0.5


class News(NamedTuple):
    """What an actor is to be told: `names` of sessions that have changed since a version; all, where it is `WHOLE`."""

    since: int
    names: set[str]


class ActorLink:
    """An actor with a method `sync`.

    Attributes:
        handle: Ray's. whole: whether the actor is to be told all that it is to do, not only what has changed.
        version, version_there: of the order, as we count it, and as the actor last said.
        heard_s, broken_s: when it last answered; since when its connection is broken, 0 while it is not.
        died: whether Ray says that it is gone for good, and `error`, why. has_answered: whether it ever has.
        pools_there, gaps_there: what a gateway was told.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.whole = True
        self._changed: set[str] = set()
        self.version, self.version_there = 0, -1
        self.heard_s, self.broken_s = time.monotonic(), 0.0
        self.died = self.has_answered = False
        self.error = ""
        self.pools_there: tuple[str, ...] | None = None
        self.gaps_there: dict[str, str] = {}
        self._trusted: dict[str, Trusted] | None = None
        self._ref: Any = None
        self._asked_s = 0.0

    @property
    def is_free(self) -> bool:
        """Whether it may be asked: it has answered, and there is news or it is time to."""
        due = self.whole or bool(self._changed) or time.monotonic() - self._asked_s >= _EVERY_S
        return self._ref is None and not self.died and due

    @property
    def settled(self) -> bool:
        """Whether the actor does what it was last told."""
        return not self.whole and not self._changed and self.version_there == self.version

    @property
    def pending(self) -> Any:
        """Ray's reference to the answer that is waited for, if any."""
        return self._ref

    def touch(self, session: str) -> None:
        """What the actor is to do about a session has changed."""
        self._changed.add(session)

    def take_news(self) -> News | None:
        """What the actor is to be told, if anything; counts a new version then."""
        if self.settled:
            return None
        since = WHOLE if self.whole or self.version_there != self.version else self.version
        news = News(since, self._changed)
        self.version += 1
        self.whole, self._changed = False, set()
        return news

    def new_trust(self, trusted: Mapping[str, Trusted], *, always: bool = False) -> dict[str, Trusted] | None:
        """Whom the actor is to trust, if that has changed."""
        if trusted == self._trusted and not always:
            return None
        self._trusted = dict(trusted)
        return self._trusted

    def ask(self, order: bytes) -> None:
        """Send an order; the answer comes by `hear`."""
        self._asked_s = time.monotonic()
        self._ref = self.handle.sync.remote(order)

    def hear(self, ray: Any, ready: Collection[Any]) -> bytes | None:
        """The answer, if it is among those that are there."""
        if self._ref is None or self._ref not in ready:
            return None
        ref, self._ref = self._ref, None
        try:
            answer: bytes = ray.get(ref)
        except ray.exceptions.ActorUnavailableError:
            self.broken_s, self.whole = self.broken_s or time.monotonic(), True
            return None
        except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnschedulableError) as error:
            self.died, self.error = True, reason(error)
            return None
        except ray.exceptions.RayError as error:
            self.broken_s, self.whole = self.broken_s or time.monotonic(), True
            print(f"an actor failed: {error}", flush=True)
            return None
        self.heard_s, self.broken_s, self.has_answered = time.monotonic(), 0.0, True
        return answer

    def end(self, ray: Any) -> None:
        """End the actor in order; in the background, so that nothing waits."""
        threading.Thread(target=self._end, args=(ray,), name="farewell", daemon=True).start()

    def _end(self, ray: Any) -> None:
        with suppress(Exception):
            ray.get(self.handle.close.remote(), timeout=5.0)
        with suppress(Exception):
            ray.kill(self.handle)
