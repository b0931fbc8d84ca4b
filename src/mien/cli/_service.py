"""What a session that runs as a service has beside its predictions: figures, a log for machines, word to systemd."""

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
    """What happens, for people in colour, or with `service.log = "json"` as one JSON object a line."""

    def __init__(self, config: Config) -> None:
        self._session = config.session
        self._json = config.service.log == "json"
        self._states: dict[str, tuple[str, str | None]] = {}

    @property
    def for_machines(self) -> bool:
        """Whether standard error carries JSON lines, and nothing else should be written there."""
        return self._json

    def note(self, text: str, console: Console) -> None:
        """Something that a person should know."""
        if self._json:
            self.write("warning", "note", message=text)
        else:
            console.print(text, style="yellow", soft_wrap=True)

    def follow(self, statuses: Iterable[Status]) -> None:
        """Write a line for every process whose state has changed; for people, the view shows it."""
        if not self._json:
            return
        for status in statuses:
            now = status.state, status.last_error if status.state in _AMISS else None
            if self._states.get(status.worker) != now:
                self._states[status.worker] = now
                level = "warning" if status.state in _AMISS else "info"
                self.write(level, "state", worker=status.worker, state=now[0], message=now[1], pid=status.pid)

    def write(self, level: str, event: str, **facts: Any) -> None:
        """One line, flushed."""
        at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": level, "event": event, "session": self._session, **facts}
        print(json.dumps(line), file=sys.stderr, flush=True)


class Service:
    """The figures' server, if the configuration asks for one, and the service manager, if there is one."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._manager = ServiceManager()
        self._exporter: Any = None

    def open(self) -> None:
        """Before the processes: a port that cannot be had is said at once.

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
        """The session runs."""
        self._manager.ready()

    def alive(self, predictions: int, per_second: float) -> None:
        """Call it in the loop that looks after the processes."""
        self._manager.alive(f"{predictions} predictions, {per_second:.1f} a second")

    def close(self) -> None:
        """The session ends."""
        self._manager.stopping()
        if self._exporter is not None:
            self._exporter.close()
