from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import Config
from mien.errors import SourceError
from mien.messages import UInt8
from mien.stream.sources.camera import LiveCamera, driver_time_ns
from mien.stream.sources.clip import open_clip
from mien.stream.sources.source import Frame, VideoSource
from mien.stream.sources.video import open_video
from tests.stream.pictures import brightness, numbered, write_clip
from tests.stream.sounds import tone, write_wav
from tests.stream.sources.media import configured, drain

TIMEOUT_S = 30.0
START_NS = 1_700_000_000 * NS_PER_S


class SetClock(Clock):
    """Returns the time it was set to."""

    def __init__(self, now_ns: int = START_NS) -> None:
        super().__init__(0)
        self.at_ns = now_ns

    def now_ns(self) -> int:
        return self.at_ns


class CountingClock(SetClock):
    """A millisecond passes at each look."""

    def now_ns(self) -> int:
        self.at_ns += NS_PER_MS
        return self.at_ns


def wait_for(source: VideoSource, condition: Callable[[Frame | None], bool], what: str) -> Frame | None:
    """Read until the condition holds, of the source or of what it returned."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        frame = source.read(timeout=0.05)
        if condition(frame):
            return frame
        assert time.monotonic() < deadline, f"{what} did not come"


def opened(config: Config, clock: Clock | None = None) -> VideoSource:
    source = open_video(config, clock or SetClock())
    source.start(START_NS)
    return source


def test_capture_times_are_those_of_the_container(tmp_path: Path) -> None:
    times_ms = [0, 40, 120, 130, 400, 1000]
    clip = write_clip(tmp_path / "clip.mp4", numbered(6), times_ms)
    frames = drain(opened(configured("video", clip, fast=True)))
    assert [frame.t_ns for frame in frames] == [START_NS + ms * NS_PER_MS for ms in times_ms]
    assert [frame.image.shape for frame in frames] == [(64, 64, 3)] * 6
    light = [brightness(frame.image) for frame in frames]
    assert np.allclose(light, [brightness(image) for image in numbered(6)], atol=8)


def test_time_zero_is_the_containers_start(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.ts", numbered(5))  # a transport stream begins at 1.4 s
    frames = drain(opened(configured("video", clip, fast=True)))
    assert [frame.t_ns - START_NS for frame in frames] == [index * 40 * NS_PER_MS for index in range(5)]


def test_fast_drops_nothing_whatever_the_time(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", numbered(60))
    source = opened(configured("video", clip, fast=True), SetClock(START_NS + 100 * NS_PER_S))
    assert len(drain(source)) == 60
    assert source.drops == {}
    assert source.ended


def test_loop_continues_in_time(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", numbered(10))
    loop_ns = round(open_clip(clip).duration_s * NS_PER_S)
    source = opened(configured("video", clip, fast=True, loop=True))
    frames = drain(source, most=30)
    assert not source.ended
    expected = [START_NS + k * loop_ns + index * 40 * NS_PER_MS for k in range(3) for index in range(10)]
    assert [frame.t_ns for frame in frames] == expected
    assert np.array_equal(frames[0].image, frames[10].image)


def test_paced_frame_arrives_when_due(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", numbered(10))
    source = opened(configured("video", clip), CountingClock())
    frames = []
    while not source.ended:
        frame = source.read(timeout=0.01)
        if frame is not None:
            assert frame.t_ns <= frame.read_ns < frame.t_ns + 20 * NS_PER_MS
            frames.append(frame)
    assert len(frames) == 10
    assert source.drops == {}


def test_late_reader_gets_the_newest_eight_and_drops_are_counted(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", numbered(40))
    clock = SetClock()
    source = opened(configured("video", clip), clock)
    first = source.read(timeout=0.0)
    assert first is not None
    assert first.t_ns == START_NS
    clock.at_ns = START_NS + NS_PER_S + NS_PER_MS  # frames 1 ... 25 are due
    late = []
    while (frame := source.read(timeout=0.0)) is not None:
        late.append((frame.t_ns - START_NS) // (40 * NS_PER_MS))
    assert late == list(range(18, 26))
    assert source.drops == {"late": 17}
    assert not source.ended


@pytest.mark.parametrize("late_s", [1.5, 8.2, 3600.4])
def test_late_start_joins_the_clip_in_progress(tmp_path: Path, late_s: float) -> None:
    """As a worker does that is started again: what was missed is neither played nor counted."""
    clip = write_clip(tmp_path / "clip.mp4", numbered(100))
    loop_ns = round(open_clip(clip).duration_s * NS_PER_S)
    late_ns = round(late_s * NS_PER_S)
    clock = CountingClock(START_NS + late_ns)
    source = opened(configured("video", clip, loop=True), clock)
    frame = wait_for(source, lambda frame: frame is not None, "a frame")
    assert frame is not None
    assert 0 <= frame.t_ns - START_NS - late_ns <= 60 * NS_PER_MS
    index = (frame.t_ns - START_NS) % loop_ns // (40 * NS_PER_MS)
    assert abs(brightness(frame.image) - brightness(numbered(100)[index])) < 8
    assert source.drops == {}


def test_started_after_its_end_a_clip_is_over(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", numbered(10))
    source = opened(configured("video", clip), SetClock(START_NS + 60 * NS_PER_S))
    assert source.read(timeout=0.1) is None
    assert source.ended


@pytest.mark.parametrize(("turned", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_phone_clip_is_upright(tmp_path: Path, turned: int, corner: tuple[int, int]) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:24, :24] = 255
    clip = write_clip(tmp_path / "clip.mp4", [image] * 3)
    turn_clip(clip, turned, image)
    frame = opened(configured("video", clip, fast=True)).read(0.0)
    assert frame is not None
    assert frame.image.shape == ((64, 96, 3) if turned in (0, 180) else (96, 64, 3))
    light = {(y, x): int(frame.image[y, x, 0]) for y in (0, -1) for x in (0, -1)}
    assert max(light, key=light.__getitem__) == corner


def turn_clip(path: Path, degrees: int, image: UInt8) -> None:
    """Write a rotation, clockwise, into the track header of an MP4."""
    height, width = image.shape[:2]
    one, unit = 1 << 16, 1 << 30
    matrices = {
        0: (one, 0, 0, 0, one, 0, 0, 0, unit),
        90: (0, one, 0, -one, 0, 0, height << 16, 0, unit),
        180: (-one, 0, 0, 0, -one, 0, width << 16, height << 16, unit),
        270: (0, -one, 0, one, 0, 0, 0, width << 16, unit),
    }
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack(">9i", *matrices[0]), content.index(b"tkhd"))
    content[at : at + 36] = struct.pack(">9i", *matrices[degrees])
    path.write_bytes(content)


def test_truncated_clip_plays_to_the_cut(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(30)]
    clip = write_clip(tmp_path / "clip.ts", images)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    frames = drain(opened(configured("video", clip, fast=True)))
    assert 5 < len(frames) < 30


def test_unplayable_clips_are_one_line_errors(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(4096))
    sound = write_wav(tmp_path / "sound.wav", tone(440.0, 0.2))
    broken = write_clip(tmp_path / "broken.mp4", numbered(5))
    content = bytearray(broken.read_bytes())
    at = content.index(b"mdat")
    content[at + 4 : at + 4 + int.from_bytes(content[at - 4 : at], "big") - 8] = bytes(
        int.from_bytes(content[at - 4 : at], "big") - 8
    )
    broken.write_bytes(content)
    for source, words in (
        (tmp_path / "missing.mp4", "does not exist"),
        (empty, "empty.mp4"),
        (noise, "noise.mp4"),
        (sound, "has no picture"),
        (broken, "cannot be decoded"),
        ("none", "turned off"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            open_video(configured("video", source), Clock())
        assert "\n" not in str(caught.value)


def test_missing_cameras_are_one_line_errors() -> None:
    for source, words in (
        ("57", "camera 57"),
        ("http://127.0.0.1:9/video", "http://127.0.0.1:9/video cannot be opened"),
        ("rtsp://user:secret@127.0.0.1:9/video", "rtsp://127.0.0.1:9/video cannot be opened"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            open_video(configured("video", source), Clock())
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.skipif(
    sys.platform != "linux" or any(Path("/dev").glob("video*")), reason="needs a computer known to have no camera"
)
def test_auto_without_a_camera_says_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match=r"connect one.*video\.source"):
        open_video(configured("video", "auto"), Clock())
    assert capfd.readouterr() == ("", "")


def test_monotonic_driver_time_is_used() -> None:
    now_ns, monotonic_ns = START_NS, 5_000 * NS_PER_S
    assert driver_time_ns(5_000_000.0 - 12.5, monotonic_ns, now_ns) == now_ns - 12_500_000
    for elsewhere in (0.0, 40.0, 5_000_001.0, 1.7e12, -1.0):
        assert driver_time_ns(elsewhere, monotonic_ns, now_ns) == now_ns


class FakeCamera:
    """Replaces a device: plays pictures, blocks, fails and freezes on command.

    Attributes:
        present: whether it can be opened. frozen: delivers one picture again and again. unblocked: a read waits for it.
        unplugged: a read fails. opened: how often it was opened.
    """

    def __init__(self) -> None:
        self.present = True
        self.frozen = self.unplugged = False
        self.unblocked = threading.Event()
        self.unblocked.set()
        self.opened = self.delivered = 0
        self.period_s = 0.01
        self._random = np.random.default_rng(0)
        self._picture = self._random.integers(0, 255, (48, 64, 3), np.uint8)

    def open(self) -> FakeCamera:
        if not self.present:
            raise SourceError("camera 0 cannot be opened")
        self.opened += 1
        return self

    def read(self) -> Frame:
        self.unblocked.wait()
        time.sleep(self.period_s)
        if self.unplugged:
            raise SourceError("camera 0 has stopped")
        if not self.frozen:
            self._picture = self._random.integers(0, 255, (48, 64, 3), np.uint8)
        self.delivered += 1
        return Frame(self._picture, time.monotonic_ns(), time.monotonic_ns())

    def close(self) -> None:
        pass


def test_only_the_newest_picture_is_kept_and_the_others_are_counted() -> None:
    device = FakeCamera()
    source = LiveCamera("camera 0", device.open)
    source.start(0)
    before = device.delivered
    while device.delivered < before + 5:
        time.sleep(0.01)
    frame = source.read(1.0)
    assert frame is not None
    assert source.drops["skipped"] >= 3
    following = source.read(1.0)
    assert following is not None
    assert following.t_ns > frame.t_ns
    source.close()
    assert source.ended
    assert source.read(0.0) is None


def camera_that_runs() -> tuple[FakeCamera, LiveCamera]:
    device = FakeCamera()
    source = LiveCamera("camera 0", device.open)
    source.start(0)
    wait_for(source, lambda frame: frame is not None, "a picture")
    return device, source


def test_unplugged_camera_reconnects() -> None:
    device, source = camera_that_runs()
    device.present, device.unplugged = False, True
    wait_for(source, lambda _: source.state == "degraded" and source.error == "camera 0 cannot be opened", "the loss")
    assert not source.ended
    device.present, device.unplugged = True, False
    wait_for(source, lambda frame: frame is not None, "a picture after the loss")
    assert (source.state, source.error, source.reopened) == ("running", None, 1)
    source.close()


def test_a_camera_that_blocks_does_not_block_the_reader_and_is_reopened() -> None:
    device, source = camera_that_runs()
    device.unblocked.clear()
    wait_for(source, lambda _: source.state == "degraded", "the watchdog")
    assert "no picture for" in str(source.error)
    wait_for(source, lambda _: device.opened >= 2, "another attempt")
    device.unblocked.set()
    wait_for(source, lambda frame: frame is not None, "a picture")
    assert source.state == "running"
    source.close()


def test_frozen_picture_is_no_evidence() -> None:
    device, source = camera_that_runs()
    device.frozen = True
    wait_for(source, lambda _: source.state == "degraded", "the watchdog")
    assert "same picture" in str(source.error)
    opened = device.opened
    wait_for(source, lambda frame: frame is not None or device.opened > opened, "another attempt")
    # It is open again and delivers, but still the picture from before.
    delivered = device.delivered
    wait_for(source, lambda frame: frame is not None or device.delivered > delivered + 5, "more copies")
    assert source.state == "degraded"
    assert source.drops["frozen"] > 0
    device.frozen = False
    wait_for(source, lambda frame: frame is not None, "a new picture")
    assert (source.state, source.error) == ("running", None)
    source.close()


def test_camera_of_one_frame_per_second_stays_connected() -> None:
    device = FakeCamera()
    device.period_s = 1.0
    source = LiveCamera("camera 0", device.open)
    source.start(0)
    states = set()
    while device.delivered < 5:
        source.read(timeout=0.05)
        states.add(source.state)
    assert states == {"running"}
    assert device.opened == 1
    device.period_s = 60.0
    wait_for(source, lambda _: source.state == "degraded", "the watchdog")
    source.close()
