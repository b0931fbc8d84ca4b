"""Local and network cameras: always the newest frame, reopened when lost.

A separate thread reads, so that a blocking camera delays nothing else; it keeps only the newest frame. A watchdog
detects cameras that are silent or frozen.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import VideoConfig
from mien.errors import SourceError
from mien.stream.sources.address import Device, Url
from mien.stream.sources.geometry import pixel_shape, upright_bgr
from mien.stream.sources.pace import Pace
from mien.stream.sources.source import Frame, VideoSource

# For 3 frames a second or more; slower cameras get more time (see `Pace`).
QUIET_S = 0.4  # silent for longer: reported
STALL_S = 1.5  # silent for longer: lost
FREEZE_S = 2.0  # same picture for longer: frozen; sensor noise makes all real frames differ
_SLOWEST_S = 3.0  # until the slowest is reported as silent
BACKOFF_S = 0.25  # before the first attempt to reopen; doubled for each further one
BACKOFF_MAX_S = 1.0
_OPEN_S = 10.0  # for the first opening; a driver may take seconds
_CONNECT_S, _SILENCE_S = 3.0, 2.5  # network: to connect, and between two packets
_MAX_ABANDONED = 4  # threads that may still hang in an abandoned camera
_MAX_DEVICES = 8  # indices that "auto" tries if the system does not list its cameras

av.logging.set_level(av.logging.PANIC)  # damaged packets are common; our own errors report them, as for clips


class Camera(Protocol):
    """An open camera."""

    def read(self) -> Frame:
        """Block until the next frame.

        Raises:
            SourceError: the camera has stopped delivering.
        """
        ...

    def close(self) -> None: ...


def open_camera(address: Device | Url, config: VideoConfig, clock: Clock) -> VideoSource:
    """Open the camera at an RTSP or HTTP address, of an index, or, for "auto", the first local one that works.

    Raises:
        SourceError: it does not exist, is busy, does not answer, or delivers no picture.
    """
    if isinstance(address, Url):
        return LiveCamera(address.name, lambda: NetworkCamera(address, clock))
    if address.name != "auto" and address.index is None:
        raise SourceError(
            f"there is no camera and no file {address.name!r}; set video.source to a number, a URL or a file"
        )
    if address.index is not None:
        index = address.index
        return LiveCamera(f"camera {index}", lambda: DeviceCamera(index, config, clock))
    for index in _device_indices():
        with contextlib.suppress(SourceError):
            return open_camera(Device(str(index)), config, clock)
    raise SourceError(
        "no camera can be opened; connect one, close the program that uses it, or set video.source to a file, "
        "a URL or none"
    )


class LiveCamera(VideoSource):
    """Any camera, with a reader thread and a watchdog that reopens it.

    Drops: "skipped", frames replaced by newer ones before they were read; "frozen", repeats of one picture. Repeats
    are never returned: they are no evidence of the present.
    """

    def __init__(self, name: str, open_camera: Callable[[], Camera]) -> None:
        super().__init__()
        self.name = name
        self._open = open_camera
        self._abandoned: list[_Grabber] = []
        self._backoff_s = BACKOFF_S
        self._lost = False
        self._retry_at_s = 0.0
        self._last_ns = 0
        self._pace = Pace()
        self._picture = self._frozen = -1  # checksums of the last picture, and of a frozen one
        self._grabber: _Grabber | None = _Grabber(open_camera)
        if not self._grabber.opened.wait(_OPEN_S):
            self.close()
            raise SourceError(f"{name} does not answer; check it, or choose another video.source")
        if self._grabber.error is not None:
            raise SourceError(self._grabber.error)
        self._heard_s = self._changed_s = time.monotonic()

    def start(self, start_ns: int) -> None:  # noqa: ARG002 - a camera has its own times
        self.state = "running"
        if self._grabber is not None:
            self._grabber.take(0.0)  # captured before the session
        self._heard_s = self._changed_s = time.monotonic()

    def read(self, timeout: float) -> Frame | None:
        if self.state == "ended":
            return None
        if self._grabber is None and not self._reopen(timeout):
            return None
        grabber = self._grabber
        assert grabber is not None
        frame = grabber.take(timeout)
        self.count("skipped", grabber.take_skipped())
        now_s = time.monotonic()
        if frame is not None:
            self._heard_s = now_s
            self._pace.add(frame.t_ns / NS_PER_S)
            return frame if self._is_new(frame, now_s) else None
        if grabber.error is not None:
            self._report_loss(grabber.error)
        elif now_s - self._heard_s > (self._limit_s(STALL_S) if grabber.opened.is_set() else _CONNECT_S):
            self._report_loss(f"{self.name} has delivered no picture for {now_s - self._heard_s:.1f} s")
        elif now_s - self._heard_s > self._limit_s(QUIET_S) and self.state == "running":
            self._degrade("no picture", QUIET_S)
        return None

    def close(self) -> None:
        self.state = "ended"
        self._abandon()
        for grabber in self._abandoned:
            grabber.join(timeout=_SILENCE_S + 0.5)

    def _is_new(self, frame: Frame, now_s: float) -> bool:
        """Whether a frame is worth returning. Detects when the picture freezes and when it recovers."""
        picture = zlib.crc32(frame.image[::4, ::4].tobytes())
        if picture in (self._picture, self._frozen):
            self.count("frozen")
            if picture != self._picture:
                self._picture, self._changed_s = picture, now_s
            elif now_s - self._changed_s > self._limit_s(FREEZE_S):
                self._frozen = picture
                self._report_loss(f"{self.name} has delivered the same picture for {self._limit_s(FREEZE_S):.0f} s")
            elif now_s - self._changed_s > self._limit_s(QUIET_S) and self.state == "running":
                self._degrade("the same picture", QUIET_S)
            return False
        self._picture, self._changed_s, self._frozen = picture, now_s, -1
        if self.state == "degraded":
            self.state, self.error = "running", None
            self.reopened += self._lost
            self._lost = False
            self._backoff_s = BACKOFF_S
        if frame.t_ns <= self._last_ns:
            self.count("disordered")
            return False
        self._last_ns = frame.t_ns
        return True

    def _limit_s(self, limit_s: float) -> float:
        """Scale a limit to this camera's frame rate; until that is known, no silence counts."""
        if not self._pace.interval:
            return max(limit_s, STALL_S)
        return limit_s + self._pace.patience(QUIET_S, _SLOWEST_S) - QUIET_S

    def _degrade(self, what: str, limit_s: float) -> None:
        self.state = "degraded"
        self.error = f"{self.name} has delivered {what} for {self._limit_s(limit_s):.1f} s"

    def _report_loss(self, why: str) -> None:
        self.state, self.error = "degraded", why
        self._lost = True
        self._abandon()
        self._retry_at_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)

    def _abandon(self) -> None:
        """Let go of the camera's thread, which may hang in its driver."""
        grabber, self._grabber = self._grabber, None
        if grabber is not None:
            grabber.stop()
            self._abandoned = [each for each in self._abandoned if each.is_alive()] + [grabber]

    def _reopen(self, timeout: float) -> bool:
        """Start to reopen it, if it is time."""
        early_s = self._retry_at_s - time.monotonic()
        hanging = sum(each.is_alive() for each in self._abandoned)
        if early_s > 0 or hanging >= _MAX_ABANDONED:
            time.sleep(min(timeout, max(early_s, 0.01)))
            return False
        self._grabber = _Grabber(self._open)
        self._heard_s = self._changed_s = time.monotonic()
        return True


class _Grabber(threading.Thread):
    """Opens a camera and reads it until stopped. Keeps the newest frame.

    Attributes:
        opened: set when it is open, or failed to open.
        error: why it stopped, if not on request.
    """

    def __init__(self, open_camera: Callable[[], Camera]) -> None:
        super().__init__(name="grabber", daemon=True)
        self.opened = threading.Event()
        self.error: str | None = None
        self._open = open_camera
        self._stopping = False
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._skipped = 0
        self.start()

    def run(self) -> None:
        try:
            with contextlib.closing(self._open()) as camera:
                self.opened.set()
                while not self._stopping:
                    self._offer(camera.read())
        except Exception as error:  # any driver error must reach the status, not end in a dead thread
            with self._changed:
                self.error = str(error) or type(error).__name__
                self._changed.notify_all()
        finally:
            self.opened.set()

    def take(self, timeout: float) -> Frame | None:
        """The newest unread frame; None after `timeout` seconds, or at once after an error."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self.error is not None, timeout)
            frame, self._newest = self._newest, None
            return frame

    def take_skipped(self) -> int:
        """Frames replaced before they were read, since the last call."""
        with self._changed:
            skipped, self._skipped = self._skipped, 0
            return skipped

    def stop(self) -> None:
        """Tell it to end after the current read. Does not wait."""
        self._stopping = True

    def _offer(self, frame: Frame) -> None:
        with self._changed:
            self._skipped += self._newest is not None
            self._newest = frame
            self._changed.notify_all()


class DeviceCamera:
    """A local camera, through OpenCV."""

    def __init__(self, index: int, config: VideoConfig, clock: Clock) -> None:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._name = f"camera {index}"
        self._clock = clock
        linux = sys.platform.startswith("linux")
        if linux and not Path(f"/dev/video{index}").exists():
            known = ", ".join(str(each) for each in _device_indices()) or "none"
            raise SourceError(f"there is no {self._name} (there is: {known}); set video.source to another")
        self._capture = cv2.VideoCapture(index, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise SourceError(
                f"{self._name} cannot be opened; close the program that uses it, and allow this one to use it"
            )
        for setting, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
            (cv2.CAP_PROP_FPS, config.fps),
        ):
            self._capture.set(setting, value)

    def read(self) -> Frame:
        if not self._capture.grab():
            raise SourceError(f"{self._name} has stopped delivering pictures; reconnect it")
        now_ns = self._clock.now_ns()
        t_ns = driver_time_ns(self._capture.get(cv2.CAP_PROP_POS_MSEC), time.monotonic_ns(), now_ns)
        ok, image = self._capture.retrieve()
        if not ok or image is None or image.ndim != 3:
            raise SourceError(f"{self._name} has delivered a picture that cannot be decoded")
        return Frame(np.asarray(image, np.uint8), t_ns, now_ns)

    def close(self) -> None:
        self._capture.release()


def driver_time_ns(position_ms: float, monotonic_ns: int, now_ns: int) -> int:
    """Session time at which a driver filled its buffer.

    Video4Linux stamps buffers with the monotonic clock. Other drivers use another epoch or give no time: then the
    time of delivery is the best estimate.
    """
    behind_ns = monotonic_ns - round(position_ms * NS_PER_MS)
    return now_ns - behind_ns if 0 <= behind_ns < NS_PER_S else now_ns


class NetworkCamera:
    """A camera at an RTSP or HTTP address, through FFmpeg, which says why it fails."""

    def __init__(self, url: Url, clock: Clock) -> None:
        self._name = url.name
        self._clock = clock
        options = {
            "rtsp_transport": "tcp",
            "fflags": "nobuffer",
            "flags": "low_delay",
            # Half a second or 256 KiB to probe the stream: the defaults wait up to five.
            "analyzeduration": "500000",
            "probesize": "262144",
        }
        try:
            self._container: Any = av.open(url.url, options=options, timeout=(_CONNECT_S, _SILENCE_S))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{self._name} cannot be opened: {_reason(error)}; check the address") from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{self._name} sends no picture; check the address")
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1  # more threads would delay frames
        self._frames = self._decode(stream)

    def read(self) -> Frame:
        try:
            frame = next(self._frames, None)
        except (av.error.FFmpegError, OSError) as error:
            raise SourceError(f"{self._name} was lost: {_reason(error)}") from error
        if frame is None:
            raise SourceError(f"{self._name} was lost: it closed the connection")
        return frame

    def close(self) -> None:
        self._container.close()

    def _decode(self, stream: Any) -> Iterator[Frame]:
        for packet in self._container.demux(stream):
            now_ns = self._clock.now_ns()
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                continue  # a packet damaged in transit; the next one may be intact
            for picture in decoded:
                image = upright_bgr((picture, pixel_shape(stream)))
                yield Frame(image, now_ns, self._clock.now_ns())


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError | TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error)


def _device_indices() -> list[int]:
    if not sys.platform.startswith("linux"):
        return list(range(_MAX_DEVICES))
    found = (re.fullmatch(r"video(\d+)", path.name) for path in Path("/dev").glob("video*"))
    return sorted(int(match.group(1)) for match in found if match)
