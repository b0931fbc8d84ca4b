from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mien.clock import NS_PER_S, Clock
from mien.errors import SourceError
from mien.messages import Float32
from mien.stream.sources.audio import open_audio
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.microphone import SampleClock
from mien.stream.sources.source import NS_PER_SAMPLE, SAMPLE_RATE, Chunk
from tests.stream.sounds import tone, write_movie, write_wav
from tests.stream.sources.media import configured, drain


def joined(chunks: list[Chunk]) -> Float32:
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_becomes_16_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    path = write_wav(tmp_path / "tone.wav", tone(440.0, 0.5, rate=rate), rate, channels)
    samples = read_sound(path)
    assert samples.dtype == np.float32
    assert abs(len(samples) - SAMPLE_RATE // 2) <= 1
    middle = slice(1000, 7000)
    assert np.abs(samples[middle] - tone(440.0, 0.5)[middle]).max() < 2e-3


def test_fast_delivers_all_at_exact_times(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "tone.wav", tone(300.0, 1.03, rate=44_100), 44_100)
    source = open_audio(configured("audio", path, fast=True), Clock())
    source.start(123)
    chunks = drain(source)
    assert np.array_equal(joined(chunks), read_sound(path))
    position = 0
    for chunk in chunks:
        assert chunk.t_start_ns == 123 + position * NS_PER_SAMPLE
        assert chunk.continuous == (position > 0)
        position += len(chunk.samples)
    assert source.drops == {}


def test_paced_chunks_come_when_their_end_is_due(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "tone.wav", tone(300.0, 0.6))
    clock = Clock()
    source = open_audio(configured("audio", path), clock)
    source.start(clock.now_ns())
    chunks = drain(source)
    assert np.array_equal(joined(chunks), read_sound(path))
    assert all(chunk.read_ns >= chunk.t_end_ns - 2_000_000 for chunk in chunks)


def test_a_clip_waits_for_its_start(tmp_path: Path) -> None:
    clock = Clock()
    source = open_audio(configured("audio", write_wav(tmp_path / "tone.wav", tone(300.0, 0.6))), clock)
    assert source.state == "ready"
    assert source.read(0.0) is None
    source.start(clock.now_ns() + 3600 * NS_PER_S)
    assert source.read(0.01) is None
    assert not source.ended
    source.close()
    source.close()
    assert source.ended


@pytest.mark.parametrize("late_s", [1.5, 61.3, 3600.02])
def test_late_start_joins_the_clip_in_progress(tmp_path: Path, late_s: float) -> None:
    """As a worker does that is started again: nothing of what was missed is played."""
    path = write_wav(tmp_path / "tone.wav", tone(3.0, 2.0))
    clock = Clock()
    source = open_audio(configured("audio", path, loop=True), clock)
    began_ns = clock.now_ns()
    source.start(began_ns - round(late_s * NS_PER_S))
    chunks = drain(source, most=5)
    assert not chunks[0].continuous
    assert began_ns - 20_000_000 <= chunks[0].t_start_ns <= clock.now_ns()
    period = round(open_clip(path).duration_s * SAMPLE_RATE)
    since = (chunks[0].t_start_ns - (began_ns - round(late_s * NS_PER_S))) // NS_PER_SAMPLE
    once = np.zeros(period, np.float32)
    once[: len(read_sound(path))] = read_sound(path)
    sound = joined(chunks)
    assert np.array_equal(sound, np.take(once, np.arange(since, since + len(sound)), mode="wrap"))


@pytest.mark.parametrize("sound_s", [0.73, 1.2, 1.61])
def test_a_loop_is_as_long_as_the_clip(tmp_path: Path, sound_s: float) -> None:
    path = write_movie(tmp_path / "movie.mp4", 1.2, tone(300.0, sound_s))
    streams = open_clip(path)
    period = round(streams.duration_s * SAMPLE_RATE)
    assert period % 320 == 0
    assert streams.duration_s >= max(1.2, sound_s) - 0.02
    source = open_audio(configured("audio", path, fast=True, loop=True), Clock())
    source.start(0)
    chunks = drain(source, most=200)
    sound = joined(chunks)
    once = np.zeros(period, np.float32)
    whole = read_sound(path)[:period]
    once[: len(whole)] = whole
    assert np.array_equal(sound, np.resize(once, len(sound)))
    assert all(after.t_start_ns == before.t_end_ns for before, after in pairwise(chunks))
    assert all(chunk.continuous for chunk in chunks[1:])


def test_pieces_equal_the_whole(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "movie.mp4", 1.0, tone(300.0, 1.0))
    assert np.array_equal(np.concatenate(list(open_clip(path).sound())), read_sound(path))


def test_what_a_clip_holds(tmp_path: Path) -> None:
    both = open_clip(write_movie(tmp_path / "both.mp4", 1.0, tone(300.0, 1.0)))
    assert (both.has_video, both.has_audio) == (True, True)
    silent = open_clip(write_movie(tmp_path / "silent.mp4", 1.0, None))
    assert (silent.has_video, silent.has_audio, silent.duration_s) == (True, False, 1.0)
    blind = open_clip(write_wav(tmp_path / "blind.wav", tone(300.0, 0.25)))
    assert (blind.has_video, blind.has_audio, blind.duration_s) == (False, True, 0.26)


def bad_clip(folder: Path, kind: str) -> Path:
    path = folder / "clip.mp4"
    if kind == "silent":
        return write_movie(path, 1.0, None)
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(bytes(range(256)) * 40)
    elif kind == "zero length":
        return write_wav(folder / "zero.wav", np.zeros(0, np.float32))
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("empty file", "cannot be read"),
        ("garbage", "cannot be read"),
        ("zero length", "zero length"),
        ("silent", "has no sound"),
    ],
)
def test_unusable_clips_are_explained(tmp_path: Path, kind: str, words: str) -> None:
    path = bad_clip(tmp_path, kind)
    with pytest.raises(SourceError, match=words) as caught:
        open_audio(configured("audio", path), Clock())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_clip_plays_to_the_cut(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "whole.wav", tone(300.0, 2.0))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(whole.read_bytes()[:30_001])
    source = open_audio(configured("audio", broken, fast=True), Clock())
    source.start(0)
    assert 0.8 < len(joined(drain(source))) / SAMPLE_RATE < 1.0


def test_an_unknown_microphone_is_one_clear_line() -> None:
    with pytest.raises(SourceError, match="there is no microphone") as caught:
        open_audio(configured("audio", "no such microphone"), Clock())
    assert "\n" not in str(caught.value)


def test_disabled_sound_is_an_error() -> None:
    with pytest.raises(SourceError, match="turned off"):
        open_audio(configured("audio", "none"), Clock())


@pytest.mark.parametrize("ppm", [-200.0, 0.0, 200.0])
def test_sample_times_follow_the_session_through_jitter_and_drift(ppm: float) -> None:
    rng = np.random.default_rng(3)
    rate, count, start_ns = 48_000, 480, 10**18
    true_rate = rate * (1 + ppm * 1e-6)
    clock = SampleClock(rate)
    errors, steps, last = [], [], None
    for block in range(60_000):  # ten minutes
        index = block * count
        true_ns = start_ns + index * NS_PER_S / true_rate
        assert clock.observe(index, int(true_ns + rng.uniform(-8e6, 8e6)), count)
        t_ns = clock.t_ns(index)
        if last is not None:
            steps.append(t_ns - last)
        last = t_ns
        errors.append(abs(t_ns - true_ns))
    assert max(errors[500:]) < 2.5e6
    assert min(steps) > 0
    assert max(abs(np.array(steps[500:]) - 10e6)) < 0.1e6


def test_missing_samples_are_not_jitter() -> None:
    clock = SampleClock(48_000)
    assert clock.observe(0, 10**18, 480)
    assert clock.observe(480, 10**18 + 60_000_000, 480)
    assert not clock.observe(960, 10**18 + 2 * NS_PER_S, 480)
