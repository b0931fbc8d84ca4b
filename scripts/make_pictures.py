"""Makes the pictures of the documentation from the built-in sample: `docs/mien.png` and `docs/dashboard-*.png`.

    python scripts/make_pictures.py

The first shows frames at the ends of two parts of the sample beside what `mien watch` says about them; the others show
the dashboard once its timeline is full. Chromium draws all of them. Needs `mien[dev]`, Debian's `chromium`, Pillow and
the font DejaVu Sans Mono; takes three minutes.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from mien.cli import _view
from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHOWN = ("happy", "sad")
BEFORE_END_S = 0.35  # a part is shown so long before it ends
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
STYLE = """<style>
body { margin: 0; display: grid; gap: 14px; width: max-content }
div { display: flex; height: 427px; background: #292929; overflow: hidden }
img { width: 427px; height: 427px }
pre { margin: 14px; font: 15px/19px 'DejaVu Sans Mono' }
</style>"""


@contextmanager
def running(*commands: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands of mien, ended with the block."""
    programs = [subprocess.Popen([sys.executable, "-m", "mien", *command], stdout=subprocess.DEVNULL)
                for command in commands]  # fmt: skip
    try:
        yield programs
    finally:
        for program in programs:
            program.terminate()
        for program in programs:
            program.wait(20)


def views(port: int, instants_s: list[float]) -> Iterator[tuple[float, str]]:
    """The instants of the predictions next to these times of the sample, and what a terminal shows then, as HTML."""
    with (
        running(["run", "--clip", str(SAMPLE), "--port", str(port), "--quiet"]) as (session,),
        Subscriber(f"tcp://127.0.0.1:{port}") as subscriber,
    ):
        first_ns, count, deadline_s = None, 0, time.monotonic() + 120
        while instants_s:
            if time.monotonic() > deadline_s or session.poll() is not None:
                raise SystemExit("the session ended before the sample did")
            for prediction in subscriber.wait(0.2):
                first_ns = prediction.t_end_ns if first_ns is None else first_ns
                at_s, count = (prediction.t_end_ns - first_ns) / 1e9, count + 1
                if instants_s and at_s >= instants_s[0]:
                    del instants_s[0]
                    console = Console(width=92, record=True, file=io.StringIO(), color_system="truecolor")
                    console.print(_view.render(prediction, subscriber.statuses, badge="SAMPLE", label="sample.mp4",
                                               per_second=count / at_s))  # fmt: skip
                    pre = "<pre style='color: {foreground}'>{code}</pre>"
                    yield at_s, console.export_html(theme=SVG_EXPORT_THEME, code_format=pre, inline_styles=True)


def frame_at(time_s: float) -> str:
    """The sample's frame at a time, as an element of HTML."""
    with av.open(str(SAMPLE)) as file:
        frame = next(frame for frame in file.decode(video=0) if frame.time >= time_s)
        frame.to_image().save(picture := io.BytesIO(), "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}'>"


def dashboard(page: Page, theme: str) -> bytes:
    """The whole page in a theme, at a moment of the sample where the face, the voice and the words agree."""
    page.evaluate(f"localStorage.setItem('mien-theme', '{theme}')")
    page.reload()
    page.wait_for_function("window.mien?.drawn && window.mien.state.rows.length > 550", timeout=120_000)
    page.wait_for_function(
        "document.querySelector('.js-top').textContent === 'happy'"
        " && parseFloat(document.querySelector('.js-number').textContent) > 1",
        timeout=60_000,
        polling=100,
    )
    page.wait_for_timeout(500)  # the chart is painted after its data are set
    return page.screenshot(full_page=True)


def save(screenshot: bytes, path: Path) -> None:
    """Write it with 256 colours."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size} bytes")


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument("--port", type=int, default=6560)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--themes", nargs="*", default=["light", "dark"], help="of the dashboard")
    given = parser.parse_args()
    manifest: dict[str, Any] = json.loads(SAMPLE.with_suffix(".json").read_text(encoding="utf-8"))
    ends = {part["emotion"]: part["end_s"] - BEFORE_END_S for part in manifest["parts"]}
    rows = [f"<div>{frame_at(at_s)}{view}</div>" for at_s, view in views(given.port, [ends[name] for name in SHOWN])]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = chromium.new_page(viewport={"width": given.width, "height": 900})
        page.set_content(STYLE + "".join(rows))
        save(page.locator("body").screenshot(), given.out / "mien.png")
        with running(
            ["run", "--clip", str(SAMPLE), "--loop", "--quiet", "--port", str(given.port)],
            ["dashboard", f"tcp://127.0.0.1:{given.port}", "--no-browser", "--port", str(given.port + 20)],
        ):
            time.sleep(10)
            page.goto(f"http://127.0.0.1:{given.port + 20}")
            for theme in given.themes:
                save(dashboard(page, theme), given.out / f"dashboard-{theme}.png")
        chromium.close()


if __name__ == "__main__":
    main()
