"""Video as a stream: a camera, a network camera, or a clip standing in for one. BGR, with capture times.

source = open_video(config, clock)
source.start(start_ns)
while not source.ended:
    frame = source.read(timeout=0.1)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from mien.clock import NS_PER_S, Clock
from mien.config import Config
from mien.errors import SourceError
from mien.stream.sources.address import File, address_of
from mien.stream.sources.clip import open_clip
from mien.stream.sources.geometry import Decoded, upright_bgr
from mien.stream.sources.source import JOIN_NS, Frame, VideoSource

OpenVideo = Callable[[Config, Clock], VideoSource]

_BACKLOG = 8  # frames of a paced clip that may be queued for a slow reader


def open_video(config: Config, clock: Clock) -> VideoSource:
    """Open, but do not start, the source named by `config.video.source`.

    Raises:
        SourceError: there is no such camera or nothing answers at the URL, the clip cannot be read or has no
            picture, or the source is "none".
    """
    address = address_of(config.video.source)
    if address is None:
        raise SourceError("the picture is turned off (video.source is none)")
    if isinstance(address, File):
        filmed = config.clip.fps and not config.clip.fast
        return (FilmedClip if filmed else ClipPicture)(address.path, config, clock)
    from mien.stream.sources.camera import open_camera

    return open_camera(address, config.video, clock)


class ClipPicture(VideoSource):
    """A clip's video, paced by the session's clock, or with `clip.fast` as fast as it is read.

    A frame's capture time is `start_ns` plus its presentation time on the clip's timeline, including previous loops.
    When paced, a frame is delivered when it is due. A reader that cannot keep up loses the oldest frames beyond a
    backlog of eight, as with a camera, counted as "late"; with `clip.fast` nothing is ever dropped. Video that cannot
    be decoded to its end stops there, and `error` says why.
    """

    def __init__(self, path: Path, config: Config, clock: Clock) -> None:
        super().__init__()
        self._clip = open_clip(path, config.clip, "picture")
        self.name = self._clip.name
        self._clock = clock
        self._paced = not config.clip.fast
        self._loop = config.clip.loop
        self._loop_ns = round(self._clip.duration_s * NS_PER_S)
        self._start_ns = 0
        self._from_ns = 0  # time since `start_ns` from which frames are wanted
        self._frames = self._played(0)
        self._waiting: deque[tuple[int, Decoded]] = deque()  # time since `start_ns`, decoded frame
        if not self._decode() and not self._clip.has_audio:
            raise SourceError(f"{self.error or f'the picture of clip {path} cannot be decoded'}; choose another file")

    def start(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self.state = "running"
        late_ns = self._clock.now_ns() - start_ns
        if self._paced and late_ns > JOIN_NS:
            # A restarted worker must not replay what was missed.
            self._from_ns, self._frames = late_ns, self._played(late_ns)
            self._waiting.clear()

    def read(self, timeout: float) -> Frame | None:
        if self.state != "running":
            return None
        if not self._waiting and not self._decode():
            self.state = "ended"
            return None
        if self._paced and not self._wait(timeout):
            return None
        t_ns, picture = self._waiting.popleft()
        read_ns = self._clock.now_ns()
        return Frame(upright_bgr(picture), self._start_ns + t_ns, read_ns)

    def close(self) -> None:
        self.state = "ended"
        self._waiting.clear()
        self._frames = iter(())

    def _wait(self, timeout: float) -> bool:
        """Wait for the next frame; whether it is due. Keeps at most the newest eight due frames."""
        until_ns = self._clock.now_ns() + round(timeout * NS_PER_S)
        while True:
            now_ns = self._clock.now_ns()
            while self._start_ns + self._waiting[-1][0] <= now_ns and self._decode():
                # The newest is not due yet, so nine may be queued and eight of them due.
                if len(self._waiting) > _BACKLOG + 1:
                    self._waiting.popleft()
                    self.count("late")
            due_ns = self._start_ns + self._waiting[0][0]
            if due_ns <= now_ns:
                return True
            if now_ns >= until_ns:
                return False
            time.sleep((min(due_ns, until_ns) - now_ns) / NS_PER_S)

    def _decode(self) -> bool:
        """Append the next frame; False if there is none."""
        for t_ns, picture in self._frames:
            if t_ns >= self._from_ns:
                self._waiting.append((t_ns, picture))
                return True
        return False

    def _played(self, from_ns: int) -> Iterator[tuple[int, Decoded]]:
        """Decoded frames by their time since the start, from `from_ns` or a little earlier; endless if it loops."""
        pass_ns = from_ns // self._loop_ns * self._loop_ns if self._loop else 0
        seek_ns, last_ns = from_ns - pass_ns, -1
        while True:
            begun_ns = last_ns
            try:
                for t_ns, picture in self._clip.pictures(seek_ns):
                    if pass_ns + t_ns > last_ns:
                        last_ns = pass_ns + t_ns
                        yield last_ns, picture
                    else:
                        self.count("disordered")
            except SourceError as error:
                # It would fail there again: do not loop or restart.
                self.error, self._loop = str(error), False
            # A whole pass without frames would be followed by another one, forever.
            if not self._loop or (last_ns == begun_ns and not seek_ns):
                return
            pass_ns, seek_ns = pass_ns + self._loop_ns, 0


class FilmedClip(ClipPicture):
    """A clip's video as a camera filming its screen would see it, at a camera's frame rate, `clip.fps`.

    Every tick of that rate yields a frame: what the clip shows at that moment, repeated if there is nothing newer, with
    the tick as its capture time. A reader that misses ticks gets the newest frame, and the missed ones are counted as
    "late".
    """

    def __init__(self, path: Path, config: Config, clock: Clock) -> None:
        super().__init__(path, config, clock)
        self._fps = config.clip.fps
        self.name = f"{self.name} at {self._fps:g} frames a second"
        self._tick = 0
        self._shown: Decoded | None = None

    def start(self, start_ns: int) -> None:
        super().start(start_ns)
        if self._from_ns:  # joined in progress, at the tick that shows a frame from before
            self._tick, self._from_ns = self._tick_of(self._from_ns), 0
            self._decode()

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
        while self._waiting and self._waiting[0][0] <= t_ns:
            self._shown = self._waiting.popleft()[1]
            self._decode()
        if not self._waiting and t_ns >= self._loop_ns and not self._loop:
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

    def _tick_of(self, t_ns: int) -> int:
        """The newest tick due at `t_ns` after the start."""
        return max(0, int(t_ns * self._fps / NS_PER_S + 1e-6))
