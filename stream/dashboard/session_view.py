"""The page's state per session: one session normally, more at a fleet's gateway."""

from __future__ import annotations

import time
from pathlib import Path

from mien.config import BusConfig, DashboardConfig
from mien.errors import BusError
from mien.stream.bus.limits import NAME
from mien.stream.dashboard.collector import Collector
from mien.stream.dashboard.control import Control
from mien.stream.dashboard.recordings import Recordings
from mien.stream.dashboard.sessions import Sessions

_UNUSED_S = 60.0
_MOST = 32  # sessions viewed at the same time


class SessionView:
    """One session: what was received of it, and what the page may control.

    Args:
        trusted: whether the page is served on this machine only; others get no pictures and cannot record.
    """

    def __init__(
        self, config: DashboardConfig, bus: BusConfig, session: str | None, replayed: Path | None, *, trusted: bool
    ) -> None:
        self.used_s = time.monotonic()
        self.collector = Collector(bus, session, config.minutes, pictures=trusted)
        self.recordings = Recordings(bus, session, config.recordings, allowed=trusted, replayed=replayed)
        self.control = Control(self.collector, bus, allowed=trusted or config.control)
        self.collector.start()

    @property
    def is_used(self) -> bool:
        """Whether a browser views it, has just viewed it, or is recording it."""
        watched = self.collector.is_watched or time.monotonic() - self.used_s < _UNUSED_S
        return watched or self.recordings.recording is not None

    def close(self) -> None:
        """Stop what was started here, and disconnect."""
        self.recordings.stop()
        self.collector.stop()


class SessionViews:
    """All session views, created on demand.

    Args:
        session: the only one to show; None for all.

    Attributes:
        sessions: the overview of all; None if only one is shown.
    """

    def __init__(
        self, config: DashboardConfig, bus: BusConfig, session: str | None, replayed: Path | None, *, trusted: bool
    ) -> None:
        self._config, self._bus, self._trusted = config, bus, trusted
        self._first = SessionView(config, bus, session, replayed, trusted=trusted)
        self._others: dict[str, SessionView] = {}
        self.sessions: Sessions | None = None
        if session is None and replayed is None:
            # With many sessions, a view of all of them as one makes no sense.
            self.sessions = Sessions(bus, self._first.collector.pause)
            self.sessions.start()

    @property
    def count(self) -> int:
        """The number of sessions to choose from; 0 if only one is shown."""
        return self.sessions.count if self.sessions is not None else 0

    def of(self, session: str | None) -> SessionView:
        """The view of a session by name; for None, of any session.

        Raises:
            BusError: not a session name, or too many are viewed already.
        """
        if session is None or self.sessions is None:
            return self._first
        for name in [name for name, view in self._others.items() if name != session and not view.is_used]:
            self._others.pop(name).close()
        if session not in self._others:
            if not NAME.fullmatch(session):
                raise BusError("not a session's name")
            if len(self._others) >= _MOST:
                raise BusError(f"{_MOST} sessions are open already; close some of their pages")
            self._others[session] = SessionView(self._config, self._bus, session, None, trusted=self._trusted)
        self._others[session].used_s = time.monotonic()
        return self._others[session]

    def close(self) -> None:
        if self.sessions is not None:
            self.sessions.stop()
        for view in (self._first, *self._others.values()):
            view.close()
