"""Launching the dashboard: standalone, or with `mien demo`, where its failure must not harm the stream."""

from __future__ import annotations

import importlib.util
import io
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mien.clock import Clock
from mien.config import BusConfig, Config
from mien.errors import BusError
from mien.stream.dashboard.screen import open_browser
from mien.stream.processes.child import Child, Event
from mien.stream.processes.control import Assignment, Control, run_supervised

_STOP_S = 2.0


def bus_overrides(endpoint: str | None) -> dict[str, Any]:
    """Configuration keys for connecting to the mien that publishes predictions at `endpoint`.

    Raises:
        BusError: it is not an address.
    """
    if endpoint is None:
        return {}
    scheme, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdigit():
        raise BusError(f"not an endpoint: {endpoint!r}; it should look like tcp://127.0.0.1:5560")
    return {"bus.host": host.strip("[]"), "bus.port": int(port)}


def bus_config(endpoint: str, keys: str = "") -> BusConfig:
    """The bus of the mien that publishes predictions at `endpoint`.

    Raises:
        BusError: it is not an address.
    """
    host, port = bus_overrides(endpoint).values()
    return BusConfig(host=host, port=port, keys=keys)


def show_dashboard(
    config: Config,
    session: str | None,
    *,
    window: bool,
    browser: bool,
    report: Callable[[str], None],
    replayed: Path | None = None,
) -> None:
    """Show a running mien until Ctrl-C.

    Args:
        window: use a window instead of a page.
        browser: open the page if there is a browser.
        report: prints a line for the user.
        replayed: the recording being replayed, if labels should go to it.

    Raises:
        MienError: the page's port is not available, or there is no screen for a window.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    if window:
        report(f"the window shows {config.bus.address()}; Ctrl-C or Esc ends")

    def ready(url: str | None) -> None:
        if url is None:
            return
        report(f"dashboard at {url}   (looking at {config.bus.address()}; Ctrl-C ends)")
        if "token=" in url:
            report(qr_code(url))
        if browser:
            open_browser(url)

    _show(config, session, stopping.is_set, ready, window=window, replayed=replayed)


def show_supervised(*, window: bool) -> None:
    """The same, supervised: a pipe says what to show and when to end."""

    def body(control: Control) -> None:
        def ready(url: str | None) -> None:
            control.report_state("ready", **({} if url is None else {"url": url}))

        config = control.assignment.config
        _show(config, config.session, control.stopping.is_set, ready, window=window)

    run_supervised(body)


def _show(
    config: Config,
    session: str | None,
    is_stopping: Callable[[], bool],
    ready: Callable[[str | None], None],
    *,
    window: bool,
    replayed: Path | None = None,
) -> None:
    """Show a window or serve the page; `ready` gets the page's address, None for a window."""
    if window:
        from mien.stream.dashboard.window import show_window

        ready(None)
        show_window(config, session, is_stopping)
        return
    importlib.import_module("nicegui")  # first, so that the error names the missing package
    from mien.stream.dashboard.server import serve, take_place

    page = config.dashboard
    place = take_place(page.host, page.port, page.token, "choose another with dashboard.port")
    serve(place, page, config.bus, session, is_stopping, ready, replayed)


class DashboardProcess:
    """A dashboard in its own process, for a session.

    Attributes:
        url: of the page; None before it is ready.
        failed: whether it could not start.
    """

    def __init__(self, config: Config, *, window: bool = False, browser: bool = True) -> None:
        self.url: str | None = None
        self.failed = False
        self._browser = browser
        self._what = "window" if window else "dashboard"
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._child = Child(self._what, Assignment(config, Clock().anchor_ns), self._events)

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def drain_notes(self) -> list[str]:
        """Messages for the user since the last call: the page's address, or why there is none."""
        notes: list[str] = []
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return notes
            if event.state == "ready" and "url" in event.facts:
                self.url = str(event.facts["url"])
                notes.append(f"dashboard at {self.url}")
                notes += [qr_code(self.url)] if "token=" in self.url else []
                if self._browser:
                    open_browser(self.url)
            elif event.state == "failed":
                self.failed = True
                notes.append(f"no {self._what}: {event.facts.get('error')}; the stream continues")
            elif event.state == "exited" and event.facts.get("code") and not self.failed:
                self.failed = True
                notes.append(f"the {self._what} has died, see {self._child.log}; the stream continues")

    def stop(self) -> None:
        self._child.end(_STOP_S)


def qr_code(url: str) -> str:
    """An address as a QR code in half blocks, for a phone; the address alone if `segno` is not installed."""
    try:
        import segno
    except ImportError:
        return url
    drawn = io.StringIO()
    segno.make_qr(url, error="m").terminal(drawn, compact=True)
    return drawn.getvalue().rstrip("\n")


def has_page() -> bool:
    """Whether the page's dependencies are installed."""
    return importlib.util.find_spec("nicegui") is not None
