"""A filmed clip: frames at a camera's rate, with unread ones lost and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import SourceError
from mien.stream.sources.video import FilmedClip, open_video
from tests.stream.pictures import brightness, numbered, write_clip
from tests.stream.sounds import tone, write_wav
from tests.stream.sources.media import configured
from tests.stream.sources.test_video_source import START_NS, SetClock

FPS = 30.0


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames, one each 40 ms."""
    return write_clip(tmp_path / "clip.mkv", numbered(10))


def filmed(clip: Path, clock: SetClock, **options: object) -> FilmedClip:
    source = open_video(configured("video", clip, fps=FPS, **options), clock)
    assert isinstance(source, FilmedClip)
    source.start(START_NS)
    return source


def tick_ns(number: int) -> int:
    return round(number * NS_PER_S / FPS)


def test_every_tick_has_the_frame_that_is_shown(clip: Path) -> None:
    clock = SetClock()
    source = filmed(clip, clock)
    shown = [brightness(image) for image in numbered(10)]
    for number in range(12):
        clock.at_ns = START_NS + tick_ns(number) + NS_PER_MS
        frame = source.read(0)
        assert frame is not None
        assert frame.t_ns == START_NS + tick_ns(number)
        assert frame.read_ns == clock.at_ns
        assert brightness(frame.image) == pytest.approx(shown[tick_ns(number) // (40 * NS_PER_MS)], abs=8)
    assert source.drops == {}


def test_future_tick_is_awaited(clip: Path) -> None:
    clock = SetClock()
    source = filmed(clip, clock)
    assert source.read(0) is not None
    assert source.read(0) is None
    clock.at_ns += 34 * NS_PER_MS
    assert source.read(0) is not None


def test_late_reader_gets_the_newest_and_drops_are_counted(clip: Path) -> None:
    clock = SetClock()
    source = filmed(clip, clock)
    assert source.read(0) is not None
    clock.at_ns = START_NS + tick_ns(6) + NS_PER_MS
    frame = source.read(0)
    assert frame is not None
    assert frame.t_ns == START_NS + tick_ns(6)
    assert source.drops == {"late": 5}


def test_ends_or_loops_with_the_clip(clip: Path) -> None:
    clock = SetClock()
    once, again = filmed(clip, clock), filmed(clip, clock, loop=True)
    clock.at_ns = START_NS + 10 * NS_PER_S
    assert once.read(0) is None
    assert once.ended
    frame = again.read(0)
    assert frame is not None
    assert not again.ended
    # The clip is a whole number of 20 ms slots long: 400 ms.
    at_ms = (frame.t_ns - START_NS) // NS_PER_MS % 400
    assert brightness(frame.image) == pytest.approx(brightness(numbered(10)[at_ms // 40]), abs=8)


def test_late_start_joins_the_clip_in_progress(clip: Path) -> None:
    clock = SetClock(START_NS + 10 * NS_PER_S)
    source = filmed(clip, clock, loop=True)
    frame = source.read(0)
    assert frame is not None
    assert START_NS + 9.9 * NS_PER_S < frame.t_ns <= clock.at_ns
    assert source.drops == {}


def test_sound_without_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    write_wav(path, tone(220.0, 1.0))
    with pytest.raises(SourceError, match="has no picture"):
        open_video(configured("video", path, fps=FPS), SetClock())
