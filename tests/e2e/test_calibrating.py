"""A person's rest, measured on the page while a session runs: counted down, kept in private, listed and deleted."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber
from tests.e2e.browser import Page, Program, assets, await_predictions, chromium, open_page, run
from tests.e2e.conftest import command
from tests.ports import free_ports

pytest.importorskip("nicegui", reason="needs the dashboard's packages")
__all__ = ["assets", "chromium", "open_page"]  # fixtures
pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(420), pytest.mark.usefixtures("assets")]


@dataclass
class Place:
    """A session of the sample in a loop and its page, for a user whose configuration is empty.

    Attributes:
        people: the folder of baselines.
    """

    port: int
    url: str
    home: Path

    @property
    def people(self) -> Path:
        return self.home / "mien" / "people"

    def listed(self) -> dict[str, Any]:
        """The output of `mien calibrate --list`."""
        ran = subprocess.run(
            command("calibrate", "--list", "--json"), capture_output=True, text=True, timeout=60, check=True,
            env=os.environ | {"XDG_CONFIG_HOME": str(self.home)},
        )  # fmt: skip
        found: dict[str, Any] = json.loads(ran.stdout)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if os.name == "nt":
        pytest.skip("the folder of the configuration cannot be chosen there")
    home = tmp_path_factory.mktemp("config")
    port = free_ports()
    session = run(port, "--clip", str(SAMPLE), "--loop", "--asr", "none")
    page = Program("dashboard", f"tcp://127.0.0.1:{port}", "--no-browser", "--port", "0", XDG_CONFIG_HOME=str(home))
    url = page.wait_for_line(r"dashboard at (\S+)")
    await_predictions(port, session)
    yield Place(port, url, home)
    page.stop()
    session.stop()


def opened(page: Page) -> None:
    page.tab.locator(".js-calibrate").click()
    page.tab.locator(".js-calibration").wait_for(state="visible")


def test_baseline_is_measured_stored_and_deleted(place: Place, open_page: Callable[..., Page]) -> None:
    page = open_page(place.url)
    opened(page)
    assert "no picture and no sound" in page.text("before")
    page.tab.fill(".js-person", "ada")
    page.tab.click(".js-calibration-start")
    page.wait(lambda: "sunlight strikes raindrops" in page.text("read"))
    assert "relaxed face" in page.text("instruction")
    shown = int(page.text("countdown"))
    assert 10 <= shown <= 15
    page.wait(lambda: 0 < int(page.text("countdown")) < shown)
    page.wait(lambda: "readable by you alone" in page.text("calibration-said"), 90)
    assert "mien run --person ada" in page.text("calibration-said")
    path = place.people / "ada.json"
    assert str(path) in page.text("calibration-said")
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    longest_s = 15.5  # a busy machine's last frame begins before the end, and lasts
    assert 10 < kept["face"]["seconds"] <= longest_s
    assert 3 <= kept["voice"]["seconds"] <= longest_s
    assert "ada · face and voice" in page.text("people")
    assert place.listed()["ada"]["state"] == "can be used"
    with Subscriber(f"tcp://127.0.0.1:{place.port}") as subscriber:
        while not (predictions := subscriber.wait(1.0)):
            pass
        assert all("ada" not in each.model for each in predictions), "measured, and not used"

    page.tab.locator(".js-people button").click()
    page.wait(lambda: "Deleted" in page.text("calibration-said"))
    assert not path.exists()
    assert place.listed() == {}
    assert page.problems == []


def test_cancelled_measurement_is_not_stored(place: Place, open_page: Callable[..., Page]) -> None:
    """By keyboard: from the name to the start, and out again."""
    page = open_page(place.url)
    page.tab.locator(".js-calibrate").focus()
    page.tab.keyboard.press("Enter")
    page.tab.locator(".js-calibration").wait_for(state="visible")
    page.tab.fill(".js-person", "bob")
    page.tab.uncheck(".js-of-audio")
    page.tab.keyboard.press(" ")  # checks it again: a key of the page it is not
    page.tab.uncheck(".js-of-audio")
    page.tab.press(".js-person", "Enter")
    page.wait(lambda: page.tab.locator(".js-measuring").is_visible())
    assert page.text("read") == ""
    page.tab.click(".js-calibration-close")
    page.wait(lambda: page.text("calibration-said") == "Nothing was stored.")
    page.tab.keyboard.press("Escape")
    page.tab.locator(".js-calibration").wait_for(state="hidden")
    assert page.badges() == ["SAMPLE"]
    assert "bob" not in place.listed()
    assert page.problems == []

    opened(page)
    page.tab.fill(".js-person", "../bob")
    page.tab.click(".js-calibration-start")
    page.wait(lambda: "is not a name for a person" in page.text("calibration-said"))


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_the_dialog_is_accessible(place: Place, open_page: Callable[..., Page], width: int) -> None:
    """Before and during a measurement, in both themes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    page = open_page(place.url, width)

    def check() -> None:
        for theme in ("light", "dark"):
            page.tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            found = axe.Axe().run(page.tab).response["violations"]
            assert not found, [(each["id"], [node["target"] for node in each["nodes"]]) for each in found]
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width

    opened(page)
    check()
    page.tab.click(".js-calibration-start")
    page.wait(lambda: page.tab.locator(".js-measuring").is_visible())
    check()
    page.tab.click(".js-calibration-close")


@pytest.mark.parametrize("origin", [None, "http://example.org"])
def test_other_pages_and_programs_cannot_measure(place: Place, origin: str | None) -> None:
    host, port = place.url.split("/")[2].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    order = json.dumps({"act": "begin", "name": "eve", "workers": ["video"]})
    connection.request("POST", "/people", order, {"Origin": origin} if origin else {})
    assert connection.getresponse().status == 403
    connection.close()
