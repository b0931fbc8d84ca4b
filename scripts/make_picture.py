"""Makes `docs/mien.png`, the picture of the README: the built-in sample, and what `mien watch` says about it.

    python scripts/make_picture.py

Runs mien on the sample at its own pace, keeps the predictions at the ends of two parts, and draws each beside the
frame it belongs to. Needs `mien[live]`, matplotlib (for its fonts) and Pillow; takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import matplotlib
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME

from mien.cli import _view
from mien.install import SAMPLE
from mien.messages import Prediction, Status
from mien.stream.bus.subscriber import Subscriber

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("happy", "sad")
BEFORE_END_S = 0.35  # a part is shown so long before it ends
FONT_PX, GAP_PX = 15, 14
Snapshot = tuple[float, Prediction, dict[str, Status], float]


def collect(port: int, instants_s: list[float]) -> list[Snapshot]:
    """Predictions at these times of the sample, with the statuses and the rate at that moment."""
    command = [sys.executable, "-m", "mien", "run", "--clip", str(SAMPLE), "--port", str(port), "--quiet"]
    session = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    snapshots: list[Snapshot] = []
    try:
        with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
            first_ns, count = None, 0
            deadline_s = time.monotonic() + 120
            while len(snapshots) < len(instants_s):
                if time.monotonic() > deadline_s or session.poll() is not None:
                    raise SystemExit("the session ended before the sample did")
                for prediction in subscriber.wait(0.2):
                    first_ns = prediction.t_end_ns if first_ns is None else first_ns
                    at_s, count = (prediction.t_end_ns - first_ns) / 1e9, count + 1
                    if len(snapshots) < len(instants_s) and at_s >= instants_s[len(snapshots)]:
                        snapshots.append((at_s, prediction, dict(subscriber.statuses), count / at_s))
    finally:
        session.terminate()
        session.wait(20)
    return snapshots


def frame_at(time_s: float) -> Image.Image:
    """The sample's frame at a time."""
    with av.open(str(SAMPLE)) as file:
        for frame in file.decode(video=0):
            if frame.time >= time_s:
                return frame.to_image()
    raise SystemExit(f"the sample has no frame at {time_s} s")


def colours(style: Style | None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A style's colours of ink and ground."""
    ink, ground = SVG_EXPORT_THEME.foreground_color, SVG_EXPORT_THEME.background_color
    if style is None:
        return ink, ground
    if style.color:
        ink = style.color.get_truecolor(SVG_EXPORT_THEME)
    if style.bgcolor:
        ground = style.bgcolor.get_truecolor(SVG_EXPORT_THEME, foreground=False)
    if style.dim:
        ink = tuple((a + b) // 2 for a, b in zip(ink, ground, strict=True))  # type: ignore[assignment]
    return ink, ground


def draw(view: RenderableType) -> Image.Image:
    """What a terminal shows."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {
        (bold, italic): ImageFont.truetype(str(folder / f"DejaVuSansMono{name}.ttf"), FONT_PX)
        for (bold, italic), name in {
            (False, False): "",
            (True, False): "-Bold",
            (False, True): "-Oblique",
            (True, True): "-BoldOblique",
        }.items()
    }
    console = Console(width=92, force_terminal=True, color_system="truecolor", legacy_windows=False)
    lines: list[list[Segment]] = console.render_lines(view, console.options, pad=True)
    cell_w, cell_h = fonts[False, False].getlength("M"), round(FONT_PX * 1.27)
    width, height = round(cell_w * console.width), cell_h * len(lines)
    image = Image.new("RGB", (width + 2 * GAP_PX, height + 2 * GAP_PX), SVG_EXPORT_THEME.background_color)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        column = 0
        for segment in line:
            ink, ground = colours(segment.style)
            key = (bool(segment.style and segment.style.bold), bool(segment.style and segment.style.italic))
            for letter in segment.text:
                left, top = GAP_PX + column * cell_w, GAP_PX + row * cell_h
                if ground != SVG_EXPORT_THEME.background_color:
                    pen.rectangle((left, top, left + cell_w, top + cell_h - 1), fill=ground)
                if letter == "█":  # the font's block is lower than our line
                    pen.rectangle((left, top + 2, left + cell_w - 0.5, top + cell_h - 3), fill=ink)
                elif letter != " ":
                    pen.text((left, top + 1), letter, fill=ink, font=fonts[key])
                column += 1
    return image


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "mien.png")
    parser.add_argument("--port", type=int, default=6560)
    arguments = parser.parse_args()
    manifest: dict[str, Any] = json.loads(SAMPLE.with_suffix(".json").read_text(encoding="utf-8"))
    ends = {part["emotion"]: part["end_s"] - BEFORE_END_S for part in manifest["parts"]}
    rows = []
    for at_s, prediction, statuses, per_second in collect(arguments.port, [ends[emotion] for emotion in SHOWN]):
        view = _view.render(prediction, statuses, badge="SAMPLE", label="sample.mp4", per_second=per_second)
        terminal = draw(view)
        face = frame_at(at_s).resize((terminal.height, terminal.height), Image.Resampling.LANCZOS)
        row = Image.new("RGB", (face.width + terminal.width, terminal.height), SVG_EXPORT_THEME.background_color)
        row.paste(face, (0, 0))
        row.paste(terminal, (face.width, 0))
        rows.append(row)
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows) + GAP_PX * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height + GAP_PX
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(192, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {whole.width} x {whole.height}, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
