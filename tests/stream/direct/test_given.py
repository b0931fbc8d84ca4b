"""Pushed input is sorted, cut like a clip's audio, rejected with a reason, and never lost."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import InputError, MienError
from mien.stream.direct.given import ORDER_NS, Frames, InputQueue, Sounds, checked_picture, checked_sound
from mien.stream.sources.source import NS_PER_SAMPLE, SAMPLE_RATE, Chunk, Frame
from tests.stream.sounds import tone

PICTURE = np.zeros((48, 64, 3), np.uint8)


def taken(waiting: InputQueue[Frame]) -> list[Frame]:
    frames = []
    while (frame := waiting.read(0.0)) is not None:
        frames.append(frame)
    return frames


def chunks_of(waiting: InputQueue[Chunk]) -> list[Chunk]:
    chunks = []
    while (chunk := waiting.read(0.0)) is not None:
        chunks.append(chunk)
    return chunks


def test_frames_in_any_order_within_half_a_second_are_read_in_order() -> None:
    waiting: InputQueue[Frame] = InputQueue("frames")
    frames = Frames(waiting)
    times_ns = [k * 40 * NS_PER_MS for k in range(50)]
    chance = random.Random(3)
    order = sorted(times_ns, key=lambda t_ns: t_ns + chance.uniform(0, 0.9 * ORDER_NS))
    assert order != times_ns
    for t_ns in order:
        frames.give(PICTURE, t_ns)
    frames.release()
    assert [frame.t_ns for frame in taken(waiting)] == times_ns


def test_late_frame_is_refused_without_effect() -> None:
    waiting: InputQueue[Frame] = InputQueue("frames")
    frames = Frames(waiting)
    frames.give(PICTURE, NS_PER_S)
    frames.release(NS_PER_S)
    with pytest.raises(InputError, match=r"the frame at 0\.900 s came after the frame at 1\.000 s"):
        frames.give(PICTURE, 900 * NS_PER_MS)
    frames.give(PICTURE, 2 * NS_PER_S)
    with pytest.raises(InputError, match=r"there is already a frame at 2\.000 s"):
        frames.give(PICTURE, 2 * NS_PER_S)
    frames.release()
    assert [frame.t_ns for frame in taken(waiting)] == [NS_PER_S, 2 * NS_PER_S]


def test_frame_buffers_can_be_reused() -> None:
    waiting: InputQueue[Frame] = InputQueue("frames")
    frames, picture = Frames(waiting), PICTURE.copy()
    frames.give(picture, 0)
    picture[:] = 200
    frames.release()
    assert not taken(waiting)[0].image.any()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000.5])
def test_sound_of_any_rate_in_any_pieces_is_the_same_sound(rate: float) -> None:
    whole = tone(440.0, 2.0, rate=round(rate))[:, None].repeat(2, axis=1)
    results = []
    for seed in (None, 1, 2):
        chance = random.Random(seed)
        waiting: InputQueue[Chunk] = InputQueue("sound")
        sounds, at, pieces = Sounds([waiting], 40), 0, []
        while at < len(whole):
            size = len(whole) if seed is None else chance.randrange(1, int(rate / 4))
            pieces.append((whole[at : at + size], at / rate))
            at += size
        for piece, t_s in sorted(pieces, key=lambda each: each[1] + chance.uniform(0, 0.2)):
            sounds.give(piece, rate, round(t_s * NS_PER_S))
        sounds.finish()
        chunks = chunks_of(waiting)
        assert all(len(chunk.samples) == 640 for chunk in chunks[:-1])
        assert [chunk.continuous for chunk in chunks] == [False] + [True] * (len(chunks) - 1)
        assert [chunk.t_start_ns for chunk in chunks] == [k * 640 * NS_PER_SAMPLE for k in range(len(chunks))]
        results.append(np.concatenate([chunk.samples for chunk in chunks]))
    assert abs(len(results[0]) - len(whole) / rate * SAMPLE_RATE) <= 1
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-6)


def test_short_gaps_are_silence_and_long_ones_restart_the_sound() -> None:
    waiting: InputQueue[Chunk] = InputQueue("sound")
    sounds = Sounds([waiting], 40)
    piece = tone(200.0, 0.4)
    for t_s in (10.0, 10.8, 100.0):
        sounds.give(piece, SAMPLE_RATE, round(t_s * NS_PER_S))
    sounds.finish()
    chunks = chunks_of(waiting)
    assert [chunk.t_start_ns / NS_PER_S for chunk in chunks if not chunk.continuous] == [10.0, 100.0]
    first = np.concatenate([chunk.samples for chunk in chunks if chunk.t_start_ns < 50 * NS_PER_S])
    assert len(first) == round(1.2 * SAMPLE_RATE)
    assert not first[round(0.45 * SAMPLE_RATE) : round(0.75 * SAMPLE_RATE)].any()


def test_sound_that_overlaps_or_is_too_late_is_refused() -> None:
    waiting: InputQueue[Chunk] = InputQueue("sound")
    sounds = Sounds([waiting], 40)
    piece = tone(200.0, 0.4)
    sounds.give(piece, SAMPLE_RATE, NS_PER_S)
    for t_s in (0.8, 1.2):
        with pytest.raises(InputError, match="overlaps"):
            sounds.give(piece, SAMPLE_RATE, round(t_s * NS_PER_S))
    sounds.release()
    with pytest.raises(InputError, match=r"the sound at 0\.200 s came after sound up to 1\.400 s"):
        sounds.give(piece, SAMPLE_RATE, 200 * NS_PER_MS)
    sounds.give(piece, SAMPLE_RATE, round(1.4 * NS_PER_S))
    sounds.finish()
    assert sum(len(chunk.samples) for chunk in chunks_of(waiting)) == round(0.8 * SAMPLE_RATE)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ([[1, 2], [3, 4]], "not list"),
        (np.zeros((48, 64, 3), np.float32), r"float32: scale it"),
        (np.zeros((48, 64), np.uint8), "GRAY2BGR"),
        (np.zeros((48, 64, 4), np.uint8), "fourth channel"),
        (np.zeros((3, 48, 64), np.uint8), "blue, green, red"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0"),
        (np.zeros((48, 8, 3), np.uint8), "8 x 48"),
    ],
)
def test_invalid_pictures_are_refused(image: object, why: str) -> None:
    with pytest.raises(InputError, match=why) as raised:
        checked_picture(image)
    assert isinstance(raised.value, MienError)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("samples", "rate", "why"),
    [
        ([0.0], 16_000, "not list"),
        (np.zeros(0, np.float32), 16_000, "at least one sample"),
        (np.zeros((2, 3, 4), np.float32), 16_000, "at least one sample"),
        (np.zeros((2, 16_000), np.float32), 16_000, "transposed"),
        (np.array([0.0, np.nan], np.float32), 16_000, "not finite"),
        (np.array([0.0, np.inf]), 16_000, "not finite"),
        (np.array([0.0, 32_767.0]), 16_000, "full scale"),
        (np.zeros(10, np.complex64), 16_000, "complex64"),
        (np.zeros(10, np.bool_), 16_000, "bool"),
        (np.zeros(10, np.float32), 0, "not 0"),
        (np.zeros(10, np.float32), float("nan"), "not nan"),
        (np.zeros(10, np.float32), "16000", "not '16000'"),
        (np.zeros(10, np.float32), True, "not True"),
    ],
)
def test_invalid_sound_is_refused(samples: object, rate: object, why: str) -> None:
    with pytest.raises(InputError, match=why):
        checked_sound(samples, rate)


def test_integers_are_scaled_as_decoders_do() -> None:
    assert checked_sound(np.array([-32_768, 16_384], np.int16), 8_000).tolist() == [[-1.0, 0.5]]
    assert checked_sound(np.array([[0, 128]], np.uint8), 8_000).tolist() == [[-1.0], [0.0]]


def test_nothing_is_lost_between_many_threads_and_a_slow_reader() -> None:
    waiting: InputQueue[Frame] = InputQueue("frames")
    frames = Frames(waiting)
    times_ns = [k * 40 * NS_PER_MS for k in range(400)]
    step = threading.Barrier(4)  # so that the threads stay within half a second of each other
    read: list[int] = []

    def give(first: int) -> None:
        for t_ns in times_ns[first::4]:
            frames.give(PICTURE, t_ns)
            step.wait(30)

    def take() -> None:
        while (frame := waiting.read(30.0)) is not None:
            read.append(frame.t_ns)

    reader = threading.Thread(target=take)
    givers = [threading.Thread(target=give, args=(first,)) for first in range(4)]
    for thread in (reader, *givers):
        thread.start()
    for thread in givers:
        thread.join(60)
    frames.release()
    waiting.finish()
    reader.join(60)
    assert read == times_ns
