"""The directory's connection to one actor: one call at a time, and what is known of the actor."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mien.stream.fleet.orders import Trusted

_EVERY_S = 0.5


class ActorLink:
    """An actor with a method `sync`.

    Attributes:
        handle: Ray's. dirty: whether what the actor is to do has changed since it was last told.
        version, version_there: of the order, as we count it, and as the actor last said.
        heard_s, broken_s: when it last answered; since when its connection is broken, 0 while it is not.
        died: whether Ray says that it is gone for good, and `error`, why. has_answered: whether it ever has.
        pools_there, gaps_there: what a gateway was told.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.dirty = True
        self.version, self.version_there = 0, -1
        self.heard_s, self.broken_s = time.monotonic(), 0.0
        self.died = self.has_answered = False
        self.error = ""
        self.pools_there: tuple[str, ...] | None = None
        self.gaps_there: dict[str, str | None] = {}
        self._trusted: dict[str, Trusted] | None = None
        self._ref: Any = None
        self._asked_s = 0.0

    @property
    def is_free(self) -> bool:
        """Whether it may be asked: it has answered, and there is news or it is time to."""
        due = self.dirty or time.monotonic() - self._asked_s >= _EVERY_S
        return self._ref is None and not self.died and due

    @property
    def settled(self) -> bool:
        """Whether the actor does what it was last told."""
        return not self.dirty and self.version_there == self.version

    def take_news(self) -> bool:
        """Whether the actor is to be told all that it is to do; counts a new version then."""
        if self.settled:
            return False
        self.version += 1
        self.dirty = False
        return True

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

    def hear(self, ray: Any) -> bytes | None:
        """The answer, once it is there."""
        if self._ref is None:
            return None
        ready, _ = ray.wait([self._ref], timeout=0)
        if not ready:
            return None
        ref, self._ref = self._ref, None
        try:
            answer: bytes = ray.get(ref)
        except ray.exceptions.ActorUnavailableError:
            self.broken_s = self.broken_s or time.monotonic()
            return None
        except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnschedulableError) as error:
            self.died, self.error = True, _reason(error)
            return None
        except ray.exceptions.RayError as error:
            self.broken_s = self.broken_s or time.monotonic()
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


def _reason(error: Exception) -> str:
    """What an actor's constructor raised; else what Ray says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line.partition("Error: ")[2] for line in lines if line.startswith("mien.errors.")]
    return (raised or lines or [type(error).__name__])[0][:500]
