"""Memory of `mien.Recognizer` over minutes of media time, given as fast as it takes them.

    python scripts/recognizer_memory.py [--minutes 10]

The built-in sample's picture, two frames a second, and its voice for half a minute of each; else silence. Prints the
resident memory after each minute but the last, the slope of a line through those from the second on, and by how much it
grows from one minute to the next at least: what leaks grows in every minute, while heaps settle within some. Exits with
1 where that is more than ALLOWED MiB.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil

import mien
from mien.clock import NS_PER_S
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.devices import SAMPLE
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import SAMPLE_RATE

ALLOWED = 2.5  # a leak of a minute of audio rows would be 5.2 MiB
MINUTE_S, FPS = 60, 2
_SETTLED = 1  # minutes until all that is loaded lazily is there
_LEAST_MINUTES = 5


def minute() -> list[mien.Frame | mien.Sound]:
    """What is given in a minute, in order, its times from 0."""
    sound = np.zeros(MINUTE_S * SAMPLE_RATE, np.float32)
    voice = read_sound(SAMPLE)
    sound[: len(voice)] = voice
    pictures: dict[int, np.ndarray] = {}
    for t_ns, frame in open_clip(SAMPLE).pictures():
        pictures.setdefault(t_ns * FPS // NS_PER_S, upright_bgr(frame))
    step = SAMPLE_RATE // 10
    items: list[mien.Frame | mien.Sound] = [
        mien.Sound(sound[at : at + step], SAMPLE_RATE, at / SAMPLE_RATE) for at in range(0, len(sound), step)
    ]
    items += [mien.Frame(pictures[k % len(pictures)], k / FPS) for k in range(MINUTE_S * FPS)]
    return sorted(items, key=lambda item: item.t)


def given(minutes: int) -> Iterator[mien.Frame | mien.Sound]:
    """So many minutes."""
    items = minute()
    for number in range(minutes):
        yield from (item._replace(t=item.t + MINUTE_S * number) for item in items)


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10)
    minutes = max(parser.parse_args().minutes, _LEAST_MINUTES)
    process = psutil.Process()
    rss_mb: list[float] = []
    count = words = 0
    with mien.Recognizer() as recognizer:
        for prediction in recognizer.every(given(minutes)):
            count += 1
            words = max(words, len(prediction.words))
            if prediction.t_end_ns >= (len(rss_mb) + 1) * MINUTE_S * NS_PER_S and len(rss_mb) < minutes - 1:
                rss_mb.append(process.memory_info().rss / 2**20)
                print(f"minute {len(rss_mb):2}: {rss_mb[-1]:7.1f} MiB", flush=True)
    settled = rss_mb[_SETTLED:]
    slope, growth = float(np.polyfit(np.arange(len(settled)), settled, 1)[0]), float(np.diff(rss_mb).min())
    print(
        f"{count} predictions, up to {words} words in a window, {time.process_time():.0f} s of one core\n"
        f"slope {slope:+.2f} MiB a minute; from one minute to the next {growth:+.2f} MiB at least"
    )
    sys.exit(growth > ALLOWED)


if __name__ == "__main__":
    main()
