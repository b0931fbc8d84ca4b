"""Pictures as a stream: a camera, a network camera, or a clip that stands in for one. BGR, with capture times.

source = open_video(config, clock)
source.start(start_ns)
while not source.ended:
    frame = source.read(timeout=0.1)
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mien.clock import NS_PER_S, Clock
from mien.config import Config
from mien.errors import SourceError
from mien.messages import WorkerState
from mien.stream.sources.clip import clip_streams

UInt8 = npt.NDArray[np.uint8]

_URL = re.compile(r"(rtsp|rtsps|rtmp|http|https|udp|tcp|srt)://", re.IGNORECASE)
_DEVICE = re.compile(r"(?:/dev/video)?(\d+)")
_BACKLOG = 8  # frames of a paced clip that may wait for a slow reader
JOIN_NS = NS_PER_S  # a paced clip that is started later than this goes on where it is by then


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        t_ns: capture time.
        read_ns: session time at which it was delivered by the driver, the network or the clip's pace.
    """

    image: UInt8
    t_ns: int
    read_ns: int


class VideoSource(ABC):
    """A camera or the picture of a clip.

    Attributes:
        name: what it is, for people; without the password that a URL may hold.
        state: "ready" before `start`, "running", "degraded" while a camera is lost, "ended" after a clip.
        error: why it is degraded; None when all is well.
        drops: frames that were never returned by `read`, since the start, by cause.
        reopened: how often a lost camera was found again.
    """

    name: str = ""
    state: WorkerState = "ready"
    error: str | None = None
    reopened: int = 0

    def __init__(self) -> None:
        self.drops: dict[str, int] = {}

    @abstractmethod
    def start(self, start_ns: int) -> None:
        """Begin. A clip's time zero is `start_ns`; a camera uses its own times."""

    @abstractmethod
    def read(self, timeout: float) -> Frame | None:
        """The next frame, with a later capture time than the last; None after `timeout` seconds without any."""

    @abstractmethod
    def close(self) -> None:
        """Release the camera or the file. May be called twice."""

    @property
    def ended(self) -> bool:
        """Whether no frame will ever follow: a clip that is over. A lost camera has not ended."""
        return self.state == "ended"

    def count(self, cause: str, frames: int = 1) -> None:
        """Note that frames were dropped."""
        self.drops[cause] = self.drops.get(cause, 0) + frames


def open_video(config: Config, clock: Clock) -> VideoSource:
    """The source that `config.video.source` names, open and not yet started.

    Raises:
        SourceError: there is no such camera or nothing answers at the URL, the clip cannot be read or has no
            picture, or the source is "none".
    """
    source = config.video.source
    if source == "none":
        raise SourceError("the picture is turned off (video.source is none)")
    device = _DEVICE.fullmatch(source)
    if source != "auto" and device is None and not _URL.match(source):
        if config.clip.fps and not config.clip.fast:
            from mien.stream.sources.filmed import FilmedClip

            return FilmedClip(Path(source), config, clock)
        return ClipPicture(Path(source), config, clock)
    from mien.stream.sources import camera

    if source == "auto":
        return camera.open_first(config.video, clock)
    if device is not None:
        return camera.open_device(int(device.group(1)), config.video, clock)
    return camera.open_network(source, clock)


class ClipPicture(VideoSource):
    """The picture of a clip, paced by the session's clock, or with `clip.fast` as fast as it is read.

    A frame's capture time is `start_ns` plus its own presentation time from the container, also when the clip loops:
    then each pass begins a clip's length after the last. Paced, a frame comes when it is due. A reader that cannot
    keep up loses the oldest frames beyond a backlog of eight, as it would in front of a camera, and they are counted
    as "late"; with `clip.fast` nothing is ever dropped.
    """

    def __init__(self, path: Path, config: Config, clock: Clock) -> None:
        super().__init__()
        path = path.expanduser()
        streams = clip_streams(path)
        if not streams.has_video:
            raise SourceError(f"clip {path} has no picture; choose another file, or set video.source to none")
        self.name = path.name
        self._path = path
        self._clock = clock
        self._paced = not config.clip.fast
        self._loop = config.clip.loop
        self._loop_ns = round(streams.duration_s * NS_PER_S)
        self._start_ns = self._pass_ns = 0
        self._last_ns = -1
        self._pictures = pictures(path)
        self._from_ns = 0  # time since `start_ns` from which frames are wanted
        self._joining = False
        self._waiting: deque[tuple[int, Any]] = deque()  # time since `start_ns`, decoded frame
        if not self._decode():
            raise SourceError(f"the picture of clip {path} cannot be decoded; choose another file")

    def start(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self.state = "running"
        late_ns = self._clock.now_ns() - start_ns
        if self._paced and late_ns > JOIN_NS:
            self._join(late_ns)

    def _join(self, late_ns: int) -> None:
        """Go on where the clip is by now: a worker that is started again must not play what was missed."""
        self._from_ns, self._joining = late_ns, True
        self._pass_ns = late_ns // self._loop_ns * self._loop_ns if self._loop else 0
        self._pictures = pictures(self._path, late_ns - self._pass_ns)
        self._waiting.clear()
        self._last_ns = -1

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
        self._pictures = iter(())
        self._loop = False

    def _wait(self, timeout: float) -> bool:
        """Until the next frame is due; whether it is. Keeps at most the newest eight of those that are."""
        until_ns = self._clock.now_ns() + round(timeout * NS_PER_S)
        while True:
            now_ns = self._clock.now_ns()
            while self._start_ns + self._waiting[-1][0] <= now_ns and self._decode():
                # The newest is not due yet, so nine may wait and eight of them be due.
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
        while True:
            picture = next(self._pictures, None)
            if picture is None:
                # A pass that gave nothing would be followed by another one, forever.
                if not self._loop or (self._last_ns < self._pass_ns and not self._joining):
                    return False
                self._joining = False
                self._pass_ns += self._loop_ns
                self._pictures = pictures(self._path)
                continue
            t_ns = self._pass_ns + picture[0]
            if t_ns > self._last_ns:
                self._last_ns = t_ns
                if t_ns < self._from_ns:
                    continue
                self._waiting.append((t_ns, picture[1]))
                return True
            self.count("disordered")


def pictures(path: Path, from_ns: int = 0) -> Iterator[tuple[int, Any]]:
    """A clip's decoded frames (`av.VideoFrame`), each with its time since the clip's time zero in ns.

    With `from_ns` they begin at or before that time, as near to it as the file allows.

    Time zero is the container's, which picture and sound share. A file that ends in the middle of a packet is
    played as far as it goes.

    Raises:
        SourceError: the file cannot be opened any more.
    """
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(f"clip {path} cannot be read: {error}") from error
    with container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        begin_ns = (container.start_time or 0) * (NS_PER_S // av.time_base)
        rate = stream.average_rate or stream.guessed_rate or 25
        try:
            if from_ns > 0:
                container.seek((begin_ns + from_ns) * av.time_base // NS_PER_S)
            for index, frame in enumerate(container.decode(stream)):
                if frame.pts is None:
                    yield int(index * NS_PER_S / rate), frame
                    continue
                t_ns = frame.pts * frame.time_base.numerator * NS_PER_S // frame.time_base.denominator - begin_ns
                if t_ns >= 0:
                    yield t_ns, frame
        except av.error.FFmpegError:
            return


def upright_bgr(frame: Any) -> UInt8:
    """A decoded frame as (H, W, 3) BGR, turned as its display matrix says: telephones film sideways."""
    image = frame.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(image, round(getattr(frame, "rotation", 0) / 90) % 4))
