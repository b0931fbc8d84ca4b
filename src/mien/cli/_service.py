"""Running a session as a service: metrics, machine-readable logs, and notifications to systemd."""

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
from mien.stream.monitoring.notify import ServiceManager

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


class Service:
    """The metrics server, if configured, and the service manager, if there is one."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._manager = ServiceManager()
        self._exporter: Any = None

    def open(self) -> None:
        """Call it before starting processes, to fail early if the port is not available.

        Raises:
            BusError: the port is in use.
        """
        if self._config.service.metrics_port:
            from mien.stream.monitoring.exporter import Exporter

            bus = self._config.bus
            self._exporter = Exporter(
                bus.address(), self._config.session, self._config.service.metrics_port, keys=bus.keys
            )

    def ready(self) -> None:
        """Notify that the session is running."""
        self._manager.ready()

    def alive(self, predictions: int, per_second: float) -> None:
        """Update; call it in the supervision loop."""
        self._manager.alive(f"{predictions} predictions, {per_second:.1f} a second")

    def close(self) -> None:
        """Notify that the session is ending."""
        self._manager.stopping()
        if self._exporter is not None:
            self._exporter.close()
