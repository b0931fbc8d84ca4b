"""A single timeline for video and audio, even if timestamps jump or restart."""

from __future__ import annotations

import itertools

from mien.clock import NS_PER_MS, NS_PER_S
from mien.stream.sources.timeline import Breaks, Stamp, trace

PICTURE, SOUND = 0, 1
FRAME_NS, BLOCK_NS = 40 * NS_PER_MS, 20 * NS_PER_MS


def part(seconds: float, picture_s: float = 0.0, sound_s: float = 0.0) -> list[Stamp]:
    """Packets of picture and sound, in the order of their times, with stamps that begin at a given time."""
    packets = [
        (k * FRAME_NS, Stamp(PICTURE, round(picture_s * NS_PER_S) + k * FRAME_NS, FRAME_NS))
        for k in range(round(seconds * 25))
    ] + [
        (k * BLOCK_NS, Stamp(SOUND, round(sound_s * NS_PER_S) + k * BLOCK_NS, BLOCK_NS))
        for k in range(round(seconds * 50))
    ]
    return [stamp for _, stamp in sorted(packets, key=lambda each: each[0])]


def times(stamps: list[Stamp], breaks: Breaks, stream: int) -> list[float]:
    """When the packets of a stream are played, in seconds."""
    mine = [stamp for stamp in stamps if stamp.stream == stream]
    shift, played = 0, []
    shifts = dict(breaks.get(stream, []))
    for number, stamp in enumerate(mine):
        shift = shifts.get(number, shift)
        assert stamp.t_ns is not None
        played.append((stamp.t_ns + shift) / NS_PER_S)
    return played


def assert_even(played: list[float], step_s: float, deadline_s: float) -> None:
    assert all(abs(b - a - step_s) < 1e-6 for a, b in itertools.pairwise(played)), played
    assert abs(played[-1] + step_s - deadline_s) < 1e-6


def test_unbroken_time_has_no_breaks() -> None:
    breaks, end_ns = trace(part(20))
    assert not breaks
    assert end_ns == 20 * NS_PER_S


def test_restarting_stamps_continue_for_both_streams() -> None:
    stamps = part(6) + part(7)
    breaks, end_ns = trace(stamps)
    assert_even(times(stamps, breaks, PICTURE), 0.04, 13.0)
    assert_even(times(stamps, breaks, SOUND), 0.02, 13.0)
    assert end_ns == 13 * NS_PER_S


def test_jumping_stamps_continue_for_both_streams() -> None:
    stamps = part(6) + part(7, 5000.0, 5000.0) + part(2, 12.0, 12.0)
    breaks, _ = trace(stamps)
    assert_even(times(stamps, breaks, PICTURE), 0.04, 15.0)
    assert_even(times(stamps, breaks, SOUND), 0.02, 15.0)


def test_picture_and_sound_of_a_new_part_keep_their_distance() -> None:
    stamps = part(6) + part(7, picture_s=0.2, sound_s=0.0)
    breaks, _ = trace(stamps)
    picture, sound = times(stamps, breaks, PICTURE), times(stamps, breaks, SOUND)
    assert abs((picture[150] - sound[300]) - 0.2) < 1e-6
    assert sound[300] >= 6.0 - 1e-6
    assert picture[150] >= 6.0 - 1e-6


def test_streams_restarting_in_turn_stay_in_sync() -> None:
    first, second = part(6), part(7)
    # Sound lags half a second behind the picture in the file.
    late = [stamp for stamp in first if stamp.stream == SOUND][-25:]
    stamps = [stamp for stamp in first if stamp not in late] + second[:37] + late + second[37:]
    stamps = [s for s in stamps if s not in second[:37] or s.stream == PICTURE]
    breaks, _ = trace(stamps)
    assert {round(shift / NS_PER_S, 3) for stream in breaks.values() for _, shift in stream} == {6.0}


def test_one_stream_may_restart() -> None:
    picture = [stamp for stamp in part(12) if stamp.stream == PICTURE]
    sound = [stamp for half in (part(6), part(6)) for stamp in half if stamp.stream == SOUND]
    stamps = [stamp for pair in zip(picture, sound[::2], sound[1::2], strict=True) for stamp in pair]
    breaks, _ = trace(stamps)
    assert PICTURE not in breaks
    assert_even(times(stamps, breaks, SOUND), 0.02, 12.0)


def test_a_single_wrong_stamp_does_not_move_what_follows() -> None:
    for wrong_ns in (0, 9000 * NS_PER_S):
        stamps = part(8)
        stamps[450] = stamps[450]._replace(t_ns=wrong_ns)
        breaks, _ = trace(stamps)
        assert abs(times(stamps, breaks, SOUND)[-1] - 7.98) < 0.1
        assert abs(times(stamps, breaks, PICTURE)[-1] - 7.96) < 0.1


def test_a_picture_that_pauses_while_there_is_sound_is_no_break() -> None:
    stamps = [s for s in part(60) if s.stream == SOUND or s.t_ns is None or not 5 < s.t_ns / NS_PER_S < 50]
    assert not trace(stamps)[0]


def test_a_short_pause_of_everything_is_kept_and_a_long_one_is_closed() -> None:
    assert not trace(part(5) + part(5, 12.0, 12.0))[0]
    assert trace(part(5) + part(5, 1005.0, 1005.0))[1] == 10 * NS_PER_S
