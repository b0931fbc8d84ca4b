"""Camera, microphone and face chosen at run time: on the page, from the terminal, and visible in recordings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber
from mien.stream.recording.reader import open_recording
from tests.e2e.browser import Page, Program, assets, await_predictions, chromium, dashboard, open_page
from tests.e2e.conftest import command
from tests.ports import free_ports
from tests.stream.pictures import beside, head, write_clip
from tests.waiting import wait_until

pytest.importorskip("nicegui", reason="needs the dashboard's packages")
__all__ = ["assets", "chromium", "open_page"]  # fixtures
pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(420), pytest.mark.usefixtures("assets")]


@dataclass
class Place:
    port: int
    session: Program
    url: str

    def statuses(self) -> dict[str, dict[str, Any]]:
        """The latest status of each process."""
        with Subscriber(f"tcp://127.0.0.1:{self.port}") as subscriber:
            wait_until(
                lambda: subscriber.statuses.keys() >= {"video", "audio", "text"},
                meanwhile=lambda: subscriber.wait(0.2),
            )
            return {worker: dict(status.detail) for worker, status in subscriber.statuses.items()}

    def follow(self, *arguments: str) -> dict[str, Any]:
        """`mien follow`."""
        followed = command("follow", *arguments, "--json", "--endpoint", f"tcp://127.0.0.1:{self.port}")
        ran = subprocess.run(followed, capture_output=True, text=True, timeout=60, check=True)
        found: dict[str, Any] = json.loads(ran.stdout)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A clip of two people replaces the camera, the sample the microphone; they can be swapped."""
    folder = tmp_path_factory.mktemp("choosing")
    both = beside(head(180), head(300))
    clip = write_clip(folder / "two people.mp4", [np.roll(both, step % 7, axis=1) for step in range(50)])
    voice = folder / "another voice.mp4"
    voice.write_bytes(SAMPLE.read_bytes())
    config = folder / "mien.toml"
    config.write_text(
        f"[video]\nsource = '{clip}'\nchoices = ['{SAMPLE}']\n"
        f"[audio]\nsource = '{SAMPLE}'\nchoices = ['{voice}']\n[clip]\nloop = true\n",
        encoding="utf-8",
    )
    port = free_ports()
    session = Program("run", "--quiet", "--port", str(port), "--config", str(config))
    page, url = dashboard(port)
    await_predictions(port, session)
    yield Place(port, session, url)
    page.stop()
    session.stop()


def followed(page: Page) -> float:
    """Where the mesh lies, as a fraction of the picture's width; -1 where there is none."""
    return float(
        page.tab.evaluate(
            "(() => { const p = window.mien.drawn?.points; if (!p?.length) return -1; let x = 0;"
            " for (let i = 0; i < p.length; i += 2) x += p[i]; return x / (p.length / 2); })()"
        )
    )


def test_clicked_face_is_followed(place: Place, open_page: Callable[..., Page]) -> None:
    page = open_page(place.url)
    page.wait(lambda: "2 faces in view, following the largest: click another" in page.text("faces-said"))
    page.wait(lambda: followed(page) > 0.5)
    canvas = page.tab.locator(".js-canvas").bounding_box()
    page.tab.mouse.click(canvas["x"] + 0.25 * canvas["width"], canvas["y"] + 0.5 * canvas["height"])
    page.wait(lambda: 0 < followed(page) < 0.5)
    page.wait(lambda: "the one you chose" in page.text("faces-said"))
    page.wait(lambda: place.statuses()["video"]["following"] == "chosen")
    assert page.tab.locator(".js-faces [aria-pressed=true]").inner_text() == "1"

    # By keyboard, with the picture mirrored: the buttons are in the order that one sees.
    page.tab.locator(".js-mirror").click()
    page.tab.locator(".js-faces button", has_text="Largest").focus()
    page.tab.keyboard.press("Enter")
    page.wait(lambda: followed(page) > 0.5)
    page.tab.locator(".js-faces button", has_text="2").click()
    page.wait(lambda: 0 < followed(page) < 0.5)
    page.tab.locator(".js-mirror").click()
    assert page.problems == []


def test_face_is_chosen_from_the_terminal(place: Place) -> None:
    place.follow("largest")
    found = place.follow()
    assert len(found["faces"]) == 2
    assert found["faces"][0][2] < 0.5 < found["faces"][1][0] + 0.1
    assert place.follow("1")["following"] == "chosen"
    assert place.statuses()["video"]["following"] == "chosen"
    assert place.follow("largest")["following"] == "largest"
    ran = subprocess.run(
        command("follow", "3", "--endpoint", f"tcp://127.0.0.1:{place.port}"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 6
    assert "there is no face 3: 2 in view" in ran.stderr


def test_camera_and_microphone_are_chosen_on_the_page(
    place: Place, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    """The session continues, statuses and a recording name the source, and a restarted worker uses it."""
    recording = tmp_path / "picked.mcap"
    recorder = Program("record", str(recording), "--port", str(place.port))
    recorder.wait_for_line("(recording) tcp")
    page = open_page(place.url)
    inference = place.session.process.pid, page.tab.evaluate("window.mien.state.era")

    def pick(worker: str, name: str) -> None:
        select = page.tab.locator(f".js-pick-{worker} select")
        page.wait(lambda: name in select.inner_text())
        assert select.evaluate("each => each.selectedOptions.length") == 1
        select.select_option(label=name)
        page.wait(lambda: place.statuses()[worker].get("source") == name)

    pick("video", SAMPLE.name)
    pick("audio", "another voice.mp4")
    page.wait(lambda: place.statuses()["text"].get("source") == "another voice.mp4")
    page.wait(lambda: page.tab.evaluate("window.mien.state.source") == f"{SAMPLE.name}, another voice.mp4")
    page.wait(lambda: page.tab.evaluate("window.mien.state.frame?.faces.length") == 1)
    page.wait(lambda: page.badges() == ["CLIP"])
    assert inference == (place.session.process.pid, page.tab.evaluate("window.mien.state.era"))
    recorder.stop()
    statuses = [
        entry.status() for entry in open_recording(recording).entries() if entry.channel.endswith("status/video")
    ]
    assert {status.detail["source"] for status in statuses if "source" in status.detail} == {
        "two people.mp4",
        SAMPLE.name,
    }

    next(p for p in psutil.Process(place.session.process.pid).children() if "video" in p.cmdline()).kill()
    page.wait(lambda: "died" in page.tab.evaluate("window.mien.state.facts.vision.note"), 20)
    page.wait(lambda: place.statuses()["video"].get("source") == SAMPLE.name)
    page.wait(lambda: page.tab.evaluate("window.mien.state.facts.vision.state") == "running")

    page.tab.locator(".js-pick-video select").select_option(label="two people.mp4")
    page.wait(lambda: place.statuses()["video"].get("source") == "two people.mp4")
    assert page.problems == []
