"""What the page works with, for each session that is looked at: one where there is one, more at a fleet's gateway."""

from __future__ import annotations

import time
from pathlib import Path

from mien.config import BusConfig, DashboardConfig
from mien.errors import BusError
from mien.stream.bus.limits import NAME
from mien.stream.dashboard.calibrating import Calibrating
from mien.stream.dashboard.choosing import Choosing
from mien.stream.dashboard.collector import Collector
from mien.stream.dashboard.recordings import Recordings
from mien.stream.dashboard.sessions import Sessions

_UNUSED_S = 60.0
_MOST = 32  # sessions that are looked at together


class SessionView:
    """One session: what is heard of it, and what the page may tell it.

    Args:
        trusted: whether the page is this machine's alone; others get no pictures and do not record.
    """

    def __init__(
        self, config: DashboardConfig, bus: BusConfig, session: str | None, replayed: Path | None, *, trusted: bool
    ) -> None:
        self.used_s = time.monotonic()
        self.collector = Collector(bus, session, config.minutes, pictures=trusted)
        self.recordings = Recordings(bus, session, config.recordings, allowed=trusted, replayed=replayed)
        self.choosing = Choosing(self.collector, bus, allowed=trusted or config.control)
        self.calibrating = Calibrating(self.collector, bus, self.choosing)
        self.collector.start()

    @property
    def is_used(self) -> bool:
        """Whether a browser looks, has just looked, or has it recorded."""
        watched = self.collector.is_watched or time.monotonic() - self.used_s < _UNUSED_S
        return watched or self.recordings.recording is not None

    def close(self) -> None:
        """End what was begun here, and disconnect."""
        self.recordings.stop()
        self.collector.stop()


class SessionViews:
    """All of them, made when they are first asked for.

    Args:
        session: the only one that is looked at; None for all there are.

    Attributes:
        sessions: what is heard of all; None where only one is looked at.
    """

    def __init__(
        self, config: DashboardConfig, bus: BusConfig, session: str | None, replayed: Path | None, *, trusted: bool
    ) -> None:
        self._config, self._bus, self._trusted = config, bus, trusted
        self._first = SessionView(config, bus, session, replayed, trusted=trusted)
        self._others: dict[str, SessionView] = {}
        self.sessions: Sessions | None = None
        if session is None and replayed is None:
            # Where there are many, nobody looks at all of them as if they were one.
            self.sessions = Sessions(bus, self._first.collector.rest)
            self.sessions.start()

    @property
    def count(self) -> int:
        """How many sessions there are to choose from; 0 where only one is looked at."""
        return self.sessions.count if self.sessions is not None else 0

    def of(self, session: str | None) -> SessionView:
        """The view of a session by its name; for None, of whichever session is there.

        Raises:
            BusError: that is no name, or too many are looked at already.
        """
        if session is None or self.sessions is None:
            return self._first
        for name in [name for name, view in self._others.items() if name != session and not view.is_used]:
            self._others.pop(name).close()
        if session not in self._others:
            if not NAME.fullmatch(session):
                raise BusError("not a session's name")
            if len(self._others) >= _MOST:
                raise BusError(f"{_MOST} sessions are looked at already; close some of their pages")
            self._others[session] = SessionView(self._config, self._bus, session, None, trusted=self._trusted)
        self._others[session].used_s = time.monotonic()
        return self._others[session]

    def close(self) -> None:
        """Close all."""
        if self.sessions is not None:
            self.sessions.stop()
        for view in (self._first, *self._others.values()):
            view.close()
