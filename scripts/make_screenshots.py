"""Makes `docs/dashboard-light.png` and `docs/dashboard-dark.png`: the dashboard on the built-in sample.

    python scripts/make_screenshots.py

Runs mien on the sample and its dashboard, waits until the timeline is full, and photographs the page with Chromium.
Needs `mien[dev]`, Debian's `chromium` and Pillow; takes a minute and a half.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mien.install import SAMPLE

ROOT = Path(__file__).resolve().parent.parent
MOMENT = "happy"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def photograph(page: Page, theme: str) -> Image.Image:
    """The whole page in a theme, at a moment of the sample where the face, the voice and the words agree."""
    page.evaluate(f"localStorage.setItem('mien-theme', '{theme}')")
    page.reload()
    page.wait_for_function("window.mien?.drawn && window.mien.state.rows.length > 550", timeout=120_000)
    page.wait_for_function(
        f"document.querySelector('.js-top').textContent === '{MOMENT}'"
        " && parseFloat(document.querySelector('.js-number').textContent) > 1",
        timeout=60_000,
        polling=100,
    )
    page.wait_for_timeout(500)  # the chart is painted after its data are set
    return Image.open(io.BytesIO(page.screenshot(full_page=True)))


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--port", type=int, default=6560)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--themes", nargs="+", default=["light", "dark"])
    given = parser.parse_args()
    run = [sys.executable, "-m", "mien", "run", "--clip", str(SAMPLE), "--loop", "--quiet", "--port", str(given.port)]
    look = [sys.executable, "-m", "mien", "dashboard", f"tcp://127.0.0.1:{given.port}", "--no-browser"]
    url = f"http://127.0.0.1:{given.port + 20}"
    programs = [
        subprocess.Popen(run, stdout=subprocess.DEVNULL),
        subprocess.Popen([*look, "--port", str(given.port + 20)]),
    ]
    try:
        time.sleep(10)
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            page = chromium.new_page(viewport={"width": given.width, "height": 900})
            page.goto(url)
            for theme in given.themes:
                image = photograph(page, theme).convert("RGB")
                path = given.out / f"dashboard-{theme}.png"
                image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
                print(f"{path}: {image.width} x {image.height}, {path.stat().st_size} bytes")
            chromium.close()
    finally:
        for program in programs:
            program.terminate()
        for program in programs:
            program.wait(20)


if __name__ == "__main__":
    main()
