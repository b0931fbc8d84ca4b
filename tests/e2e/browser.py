"""Headless Chromium for tests of the page, and the programs behind it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber
from tests.e2e.conftest import command
from tests.needs import need_assets
from tests.ports import free_ports

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TIMEOUT_S = 60.0
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def assets() -> None:
    """Skips where a pretrained file is missing."""
    need_assets()


class Program:
    """A mien process, and its standard error."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.lines.extend(lines)

    def wait_for_line(self, pattern: str, timeout_s: float = TIMEOUT_S) -> str:
        """Wait for a matching line; returns its first group."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found.group(1)
            time.sleep(0.05)
        raise AssertionError(f"no line like {pattern!r} in: {''.join(self.lines)}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join(5)


def run(port: int, *arguments: str) -> Program:
    return Program("run", "--quiet", "--port", str(port), *arguments)


def dashboard(port: int, *arguments: str) -> tuple[Program, str]:
    program = Program("dashboard", f"tcp://127.0.0.1:{port}", "--no-browser", *(arguments or ("--port", "0")))
    return program, program.wait_for_line(r"dashboard at (\S+)")


def await_predictions(port: int, session: Program) -> None:
    """Wait until a session predicts; one that has ended fails with its output."""
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        deadline_s = time.monotonic() + 120
        while not subscriber.wait(0.5):
            assert session.process.poll() is None, session.lines
            assert time.monotonic() < deadline_s, session.lines


@pytest.fixture(scope="module")
def station() -> Iterator[tuple[int, Program, str]]:
    """The sample in a loop, and a dashboard: port of the bus, the dashboard's process, the page's address."""
    port = free_ports()
    session = run(port, "--clip", str(SAMPLE), "--loop")
    page, url = dashboard(port)
    await_predictions(port, session)
    yield port, page, url
    page.stop()
    session.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=_ARGUMENTS)
        yield browser
        browser.close()


class Page:
    """A page that records its errors, and every host that it contacts."""

    def __init__(self, chromium: Any, url: str, width: int = 1440, rows: int = 3, **context: Any) -> None:
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.tab = chromium.new_page(viewport={"width": width, "height": 900}, **context)
        self.tab.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("response", lambda answer: self.problems.append(answer.text()) if answer.status >= 400 else None)
        self.tab.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.tab.goto(url)
        self.tab.wait_for_function(f"window.mien && window.mien.state.rows.length >= {rows}", timeout=60_000)

    def text(self, name: str) -> str:
        return str(self.tab.inner_text(f".js-{name}"))

    def badges(self) -> list[str]:
        return list(self.tab.eval_on_selector_all(".m-badge", "all => all.map(each => each.dataset.kind)"))

    def wait(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
        """Until a condition holds, while the page lives on."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{self.badges()} {self.text('keys')} {self.problems}"
            self.tab.wait_for_timeout(100)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Page]]:
    """Opens pages, and closes them after the test."""
    pages: list[Page] = []

    def opened(url: str, width: int = 1440, rows: int = 3, **context: Any) -> Page:
        pages.append(Page(chromium, url, width, rows, **context))
        return pages[-1]

    yield opened
    for page in pages:
        page.tab.close()
