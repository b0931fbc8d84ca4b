"""When mien predicts: for the newest instant, at a camera's pace; playing in full, for every instant in order."""

from __future__ import annotations

import itertools
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien.clock import NS_PER_MS
from mien.config import load_config
from mien.engines.rings import Windows
from mien.messages import WORKERS, Cue, FeatureWindow, spans_of
from mien.stream.inference.playback import CompleteSchedule, CueSchedule
from mien.stream.inference.prediction import Live
from tests.stream.inference.test_assembler import SPECS, at, frame, sound, speech


def live() -> Live:
    settings = {"inference.max_hz": 30, "inference.hop_ms": 50, "inference.max_age_ms": 500}
    return Live(load_config(None, settings), tuple(WORKERS), {}, SPECS, Windows(SPECS), 1)


def ms(t_ns: int) -> int:
    return (t_ns - at(0)) // NS_PER_MS


def test_every_video_row_is_due_once() -> None:
    mode = live()
    mode.take(frame(0, 0), at(10))
    trigger = mode.due(at(11))
    assert trigger is not None
    assert trigger.t_end_ns == at(0)
    assert trigger.received_ns == at(10)
    assert mode.due(at(12)) is None


def test_next_instant_is_extrapolated() -> None:
    mode = live()
    expected = []
    for seq, t_ms in enumerate((0, 40, 80, 700, 740)):
        mode.take(frame(seq, t_ms), at(t_ms + 5))
        assert mode.expected() is None  # one is due
        assert mode.due(at(t_ms + 6)) is not None
        coming = mode.expected()
        expected.append(None if coming is None else ms(coming[0]))
    assert expected == [None, 80, 120, None, 780]  # nothing is expected after a gap


def test_newest_waiting_row_is_due_and_others_are_counted() -> None:
    mode = live()
    for seq in range(4):
        mode.take(frame(seq, seq * 33), at(seq * 33 + 5))
    trigger = mode.due(at(110))
    assert trigger is not None
    assert ms(trigger.t_end_ns) == 99
    assert mode.dropped == {"superseded": 3}


def test_max_hz_limits_60_hz_but_not_jittery_30_hz() -> None:
    fast, jittery = live(), live()
    made_fast = made_jittery = 0
    for seq in range(120):
        fast.take(frame(seq, seq * 16.67), at(seq * 16.67))
        made_fast += fast.due(at(seq * 16.67 + 1)) is not None
    for seq in range(60):
        t_ms = seq * 33.3 + (2 if seq % 2 else -2)
        jittery.take(frame(seq, t_ms), at(t_ms))
        made_jittery += jittery.due(at(t_ms + 1)) is not None
    assert made_fast == 60
    assert made_jittery == 60


def test_sound_leads_while_there_is_no_picture() -> None:
    mode = live()
    mode.take(frame(0, 0), at(5))
    assert mode.due(at(5)) is not None
    mode.take(sound(0, 100), at(105))
    assert mode.due(at(105)) is None, "vision leads for half a second after its last row"
    mode.take(sound(1, 600), at(605))
    trigger = mode.due(at(606))
    assert trigger is not None
    assert ms(trigger.t_end_ns) == 600
    mode.take(frame(1, 650), at(655))
    assert mode.due(at(656)) is not None
    mode.take(sound(2, 700), at(705))
    assert mode.due(at(706)) is None


def test_timer_continues_without_input() -> None:
    mode = live()
    assert mode.due(at(1000)) is not None
    assert mode.due(at(1049)) is None
    trigger = mode.due(at(1050))
    assert trigger is not None
    assert trigger.read_ns is None


def test_instants_never_go_back() -> None:
    mode = live()
    mode.take(frame(0, 500), at(505))
    assert mode.due(at(506)) is not None
    mode.take(frame(1, 300), at(507))
    assert mode.due(at(508)) is None


def test_complete_mode_waits_for_every_worker_that_has_not_ended() -> None:
    schedule = CompleteSchedule(["vision", "audio"], max_hz=30)
    schedule.add(frame(0, 100), 0)
    assert schedule.due({"vision": at(100), "audio": None}) is None
    assert schedule.due({"vision": at(100), "audio": at(99)}) is None
    assert schedule.due({"vision": at(100), "audio": at(100)}) is not None
    assert not schedule.finished
    schedule.end("vision")
    schedule.add(sound(0, 160), 0)
    trigger = schedule.due({"audio": at(160)})
    assert trigger is not None
    assert ms(trigger.t_end_ns) == 160
    schedule.end("audio")
    assert schedule.finished


@given(st.randoms(use_true_random=False))
def test_complete_instants_do_not_depend_on_arrival_order(random: Random) -> None:
    def play(order: list[FeatureWindow]) -> list[int]:
        schedule = CompleteSchedule(["vision", "audio"], max_hz=30)
        marks: dict[str, int | None] = {"vision": None, "audio": None}
        made = []
        for message in order:
            schedule.add(message, 0)
            marks[message.modality] = message.t_end_ns
            while trigger := schedule.due(marks):
                made.append(ms(trigger.t_end_ns))
        schedule.end("vision")
        while trigger := schedule.due({"audio": marks["audio"]}):
            made.append(ms(trigger.t_end_ns))
        return made

    video = [frame(seq, seq * 40) for seq in range(20)]
    audio = [sound(seq, (seq + 1) * 40) for seq in range(25)]
    first = play(video + audio)
    left, right, mixed = list(video), list(audio), []
    while left or right:
        source = left if left and (not right or random.random() < 0.5) else right
        mixed.append(source.pop(0))
    assert play(mixed) == first
    assert first == sorted(first)


@pytest.mark.parametrize("committed_before", [False, True])
def test_complete_last_instant_has_tentative_words(committed_before: bool) -> None:
    schedule = CompleteSchedule(["vision", "text"], max_hz=30)
    schedule.add(frame(0, 100), 0)
    schedule.add(speech(0, 100, ("on", 90)), 0)
    assert schedule.due({"vision": at(100), "text": at(100)}) is not None
    if committed_before:
        schedule.add(speech(1, 100, ("on", 90)), 0)
    assert [(m.modality, m.seq) for m in schedule.take(at(100))] == [("vision", 0), ("text", 0)]
    if not committed_before:
        schedule.add(speech(1, 100, ("on", 90)), 0)
    assert schedule.take(at(100)) == []
    assert [(m.modality, m.seq) for m in schedule.take(None)] == [("text", 1)]


def test_triggers_carry_the_stamps_of_their_message() -> None:
    mode = live()
    stamped = msgspec.structs.replace(frame(0, 0), stamps={"read": at(1), "sent": at(9)})
    mode.take(stamped, at(10))
    trigger = mode.due(at(11))
    assert trigger is not None
    assert (trigger.read_ns, trigger.sent_ns) == (at(1), at(9))


def test_message_numbers_as_ranges() -> None:
    numbers = {"vision": [(7, 3), (7, 4), (7, 6), (8, 0), (8, 1)], "audio": []}
    assert spans_of(numbers) == {"vision": ((7, 3, 4), (7, 6, 6), (8, 0, 1)), "audio": ()}


def cue(seq: int, *spans: tuple[int, int, int], end: bool = False) -> Cue:
    return Cue(session="default", seq=seq, t_end_ns=at(seq), inputs={"vision": spans}, end=end)


def test_cue_waits_for_its_messages_in_order() -> None:
    schedule = CueSchedule()
    frames = [frame(seq, seq * 40) for seq in range(6)]
    run = frames[0].run
    schedule.cue(cue(0, (run, 0, 1), (run, 3, 3)))
    schedule.cue(cue(1))
    schedule.cue(cue(1))
    schedule.cue(cue(0))
    assert schedule.due(at(0)) is None
    for message in (frames[3], frames[1], frames[2], frames[0]):
        assert schedule.due(at(1)) is None
        schedule.add(message)
    due = schedule.due(at(2))
    assert due is not None
    assert due[0].seq == 0
    assert [message.seq for message in due[1]] == [0, 1, 3]
    due = schedule.due(at(3))
    assert due is not None
    assert due[1] == []
    assert schedule.due(at(4)) is None, "a cue that came twice is answered once"
    schedule.cue(cue(2, end=True))
    assert schedule.due(at(5)) is None
    assert schedule.finished


def test_missing_messages_time_out_and_are_counted() -> None:
    schedule = CueSchedule()
    message = frame(4, 160)
    schedule.add(message)
    schedule.cue(cue(0, (message.run, 3, 4)))
    assert schedule.due(at(0)) is None
    assert schedule.due(at(9_000)) is None
    due = schedule.due(at(10_001))
    assert due is not None
    assert due[1] == [message]
    assert schedule.lost == 1


def in_full(frames_ms: list[float], until_ms: int) -> list[tuple[int, list[str]]]:
    """Instants that are predicted for a clip with such frames and sound all the time, and what has news for each."""
    schedule = CompleteSchedule(["vision", "audio"], max_hz=30, max_age_ms=400)
    for seq, t_ms in enumerate(frames_ms):
        schedule.add(frame(seq, t_ms), 0)
    for seq in range(until_ms // 40):
        schedule.add(sound(seq, (seq + 1) * 40), 0)
    schedule.end("vision")
    made = []
    while trigger := schedule.due({"audio": at(until_ms)}):
        made.append((ms(trigger.t_end_ns), [message.modality for message in schedule.take(trigger.t_end_ns)]))
    return made


def test_complete_sound_leads_while_the_picture_pauses() -> None:
    made = in_full([*range(0, 3000, 40), *range(9000, 10000, 40)], 10_000)
    instants = [instant for instant, _ in made]
    assert instants == sorted(set(instants))
    pause = [instant for instant in instants if 3500 < instant < 8900]
    assert len(pause) == len(range(3520, 8900, 40))
    assert not [news for instant, news in made if 3000 < instant < 8990 and "vision" in news], "pictures of the future"
    assert set(range(9000, 10000, 40)) <= set(instants)
    assert max(b - a for a, b in itertools.pairwise(instants)) <= 480


def test_complete_sound_leads_until_the_picture_begins() -> None:
    instants = [instant for instant, _ in in_full(list(range(2000, 3000, 40)), 3000)]
    assert instants[:3] == [40, 80, 120]
    assert 2040 in instants


def test_a_camera_of_one_frame_a_second_does_not_lead() -> None:
    instants = [instant for instant, _ in in_full(list(range(0, 12_000, 1000)), 12_000)]
    assert set(range(5000, 12_000, 40)) <= set(instants), "the sound leads all the time"
    mode = live()
    made = 0
    for t_ms in range(0, 12_000, 40):
        if t_ms % 1000 == 0:
            mode.take(frame(t_ms // 1000, t_ms), at(t_ms + 5))
        mode.take(sound(t_ms // 40, t_ms), at(t_ms + 5))
        made += t_ms > 5000 and mode.due(at(t_ms + 6)) is not None
    assert made >= 170
