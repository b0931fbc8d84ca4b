"""A clip as a camera filming its screen would see it: a fixed frame rate, without waiting for slow readers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mien.clock import NS_PER_S, Clock
from mien.config import Config
from mien.errors import SourceError
from mien.stream.sources.clip import open_clip
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import Frame, VideoSource


class FilmedClip(VideoSource):
    """A clip's video at a camera's frame rate, `clip.fps`.

    Every tick of that rate yields a frame: what the clip shows at that moment, repeated if there is nothing newer, with
    the tick as its capture time. A reader that misses ticks gets the newest frame, and the missed ones are counted as
    "late".
    """

    def __init__(self, path: Path, config: Config, clock: Clock) -> None:
        super().__init__()
        self._clip = open_clip(path, config.clip, "picture")
        self.name = f"{self._clip.name} at {config.clip.fps:g} frames a second"
        self._clock, self._loop = clock, config.clip.loop
        self._fps = config.clip.fps
        self._loop_ns = round(self._clip.duration_s * NS_PER_S)
        self._start_ns = 0
        self._tick = 0
        self._frames = self._decoded(0)
        self._shown: Any = None
        self._next = next(self._frames, None)
        if self._next is None and not self._clip.has_audio:
            raise SourceError(f"{self.error or f'the picture of clip {path} cannot be decoded'}; choose another file")

    def start(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self.state = "running"
        late_ns = self._clock.now_ns() - start_ns
        if late_ns > NS_PER_S:  # a restarted worker resumes where the clip is by now
            self._tick = self._tick_of(late_ns)
            self._frames = self._decoded(late_ns // self._loop_ns * self._loop_ns if self._loop else 0)
            self._next = next(self._frames, None)

    def read(self, timeout: float) -> Frame | None:
        if self.state != "running":
            return None
        until_ns = self._clock.now_ns() + round(timeout * NS_PER_S)
        newest = self._tick_of(self._clock.now_ns() - self._start_ns)
        if newest > self._tick:
            self.count("late", newest - self._tick)
            self._tick = newest
        t_ns = round(self._tick * NS_PER_S / self._fps)
        # Decoded before it is due, as a driver would have it ready.
        while self._next is not None and self._next[0] <= t_ns:
            self._shown = self._next[1]
            self._next = next(self._frames, None)
        if self._next is None and t_ns >= self._loop_ns and not self._loop:
            self.state = "ended"
            return None
        due_ns = self._start_ns + t_ns
        while (now_ns := self._clock.now_ns()) < due_ns:
            if now_ns >= until_ns:
                return None
            time.sleep((min(due_ns, until_ns) - now_ns) / NS_PER_S)
        self._tick += 1
        if self._shown is None:  # the clip's video starts after its audio
            return None
        return Frame(upright_bgr(self._shown), due_ns, self._clock.now_ns())

    def close(self) -> None:
        self.state = "ended"
        self._shown = self._next = None
        self._frames = iter(())

    def _tick_of(self, t_ns: int) -> int:
        """The newest tick due at `t_ns` after the start."""
        return max(0, int(t_ns * self._fps / NS_PER_S + 1e-6))

    def _decoded(self, pass_ns: int) -> Iterator[tuple[int, Any]]:
        """Frames by their time since the start, from the pass that begins at `pass_ns`; endless if it loops."""
        last_ns = -1
        while True:
            empty = True
            for t_ns, picture in self._pictures():
                if pass_ns + t_ns > last_ns:
                    last_ns, empty = pass_ns + t_ns, False
                    yield last_ns, picture
            if empty or not self._loop:
                return
            pass_ns += self._loop_ns

    def _pictures(self) -> Iterator[tuple[int, Any]]:
        """The clip's frames, as far as it can be read."""
        try:
            yield from self._clip.pictures()
        except SourceError as error:
            self.error, self._loop = str(error), False
