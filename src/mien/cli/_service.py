"""The log of a session that runs as a service."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from mien.config import Config
from mien.messages import Status

_AMISS = ("degraded", "failed")


class Journal:
    """Log of events, in colour for people, or with `service.log = "json"` as one JSON object per line."""

    def __init__(self, config: Config) -> None:
        self._session = config.session
        self._json = config.service.log == "json"
        self._states: dict[str, tuple[str, str | None]] = {}

    @property
    def for_machines(self) -> bool:
        """Whether standard error is for JSON lines only."""
        return self._json

    def note(self, text: str, console: Console) -> None:
        """Log a message for the user."""
        if self._json:
            self.write("warning", "note", message=text)
        else:
            console.print(text, style="yellow", soft_wrap=True)

    def follow(self, statuses: Iterable[Status]) -> None:
        """Log every process whose state has changed; for people, the view shows it instead."""
        if not self._json:
            return
        for status in statuses:
            now = status.state, status.last_error if status.state in _AMISS else None
            if self._states.get(status.worker) != now:
                self._states[status.worker] = now
                level = "warning" if status.state in _AMISS else "info"
                self.write(level, "state", worker=status.worker, state=now[0], message=now[1], pid=status.pid)

    def write(self, level: str, event: str, **facts: Any) -> None:
        """Write one line, and flush."""
        at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": level, "event": event, "session": self._session, **facts}
        print(json.dumps(line), file=sys.stderr, flush=True)
