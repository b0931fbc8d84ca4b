"""A fleet's sessions in the browser and in `/metrics`, from a gateway that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Program, chromium
from tests.fleet.conftest import SMALL, Marked
from tests.needs import fetch
from tests.ports import free_ports

pytest.importorskip("nicegui", reason="needs the dashboard's packages")
__all__ = ["chromium"]  # a fixture
pytestmark = [pytest.mark.fleet, pytest.mark.assets, pytest.mark.timeout(400)]
PATIENCE_MS = 90_000
PLAN = (
    SMALL
    + """
metrics_port = {metrics}
[[sessions]]
pattern = "s-{{n}}"
count = 3
source = "synthetic:5"
[[sessions]]
name = "gone"
camera = "rtsp://127.0.0.1:9/none"
mic = "none"
config.text.asr = "none"
[[sessions]]
name = "nowhere"
source = "synthetic:5"
place = {{site = "moon"}}
"""
)


def test_all_sessions_are_shown_and_a_click_opens_one(
    tmp_path: Path, mien: Callable[..., Any], marked: Marked, chromium: Any
) -> None:
    port, metrics = free_ports(4), free_ports(1)
    path = tmp_path / "fleet.toml"
    path.write_text(PLAN.format(port=port, metrics=metrics), encoding="utf-8")
    dashboard = Program("dashboard", f"tcp://127.0.0.1:{port}", "--no-browser", "--port", "0", **marked.environment)
    problems: list[str] = []
    page = chromium.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))

    def tile(name: str) -> str:
        return f'.m-tile[href="/?session={name}"]'

    try:
        url = dashboard.wait_for_line(r"dashboard at (\S+)")
        page.goto(url)  # before there is a fleet, and without a session's name
        mien("fleet", "run", str(path), "--detach")
        page.wait_for_url("**/sessions")
        for name in ("s-1", "s-2", "s-3"):
            page.wait_for_selector(f'{tile(name)}[data-state="running"]')
        page.wait_for_function(
            "[...document.querySelectorAll('.m-tile[data-state=running]')].every(({innerText: said}) =>"
            " /[+−]\\d\\.\\d\\d/.test(said) && /p50 [\\d.]+, p99 [\\d.]+ ms/.test(said) && /\\d\\.\\d\\/s/.test(said))"
        )
        page.wait_for_function("document.querySelector('.js-badges').innerText.includes('3 running')")
        # The gateway explains why an unplaced session is silent.
        assert "site=moon" in page.inner_text(tile("nowhere"))
        # An unreachable camera is reported, and the others run.
        page.wait_for_selector(f"{tile('gone')}.is-bad:has-text('127.0.0.1:9')")
        listed = json.loads(mien("fleet", "status", "small", "--json", check=False).stdout)["sessions"]
        notes = {session["name"]: session["note"] for session in listed if session["state"] != "running"}
        assert notes.keys() == {"gone", "nowhere"}
        assert "127.0.0.1:9" in notes["gone"]
        page.fill(".js-filter", "s-2")
        page.wait_for_function("document.querySelectorAll('.m-tile').length === 1")
        page.click(tile("s-2"))
        page.wait_for_url("**/?session=s-2")
        page.wait_for_function("window.mien && window.mien.state.rows.length >= 3")
        assert "s-2" in page.inner_text(".js-source")
        page.wait_for_function("document.querySelector('.js-note').innerText.includes('machine of its camera')")
        assert page.locator(".js-devices").is_hidden()  # nothing there can be chosen from here
        assert page.locator(".js-record").is_hidden()
        page.click(".js-sessions")
        page.wait_for_selector(tile("s-1"))
        code, text = fetch(metrics, "/metrics")
        assert code == 200
        figures = dict(re.findall(r"^(mien_fleet_\S+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE))
        assert figures["mien_fleet_gateway_floods_total"] == "0.0"
        assert figures["mien_fleet_gateway_up"] == figures["mien_fleet_gateway_pools"] == "1.0"
        assert figures['mien_fleet_sessions{state="waiting"}'] == "1.0"
        assert float(figures['mien_fleet_session_predictions_total{session="s-1"}']) > 0
        mien("fleet", "stop", "small")
        page.wait_for_selector(f"{tile('s-1')}.is-bad")
        assert problems == []
    finally:
        page.close()
        dashboard.stop()
    assert marked.wait_gone(30) == []
