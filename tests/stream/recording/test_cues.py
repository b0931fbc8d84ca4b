"""A replay is bit-equal: every window is made from the same messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import FeatureWindow, Prediction
from mien.stream.bus.wire import decode_features
from mien.stream.inference.assembler import Assembler
from mien.stream.inference.playback import CueSchedule
from mien.stream.recording.cues import Cued, CueMaker, Sent
from mien.stream.recording.reader import open_recording
from tests.stream.recording import sessions
from tests.stream.recording.sessions import SPECS, START_NS, digest, live, write
from tests.windows import window_of


def replay(path: Path) -> list[tuple[Cued, float]]:
    """What an inference process makes of the cues: each cue, and the digest of its window."""
    maker, schedule, assembler = CueMaker(open_recording(path)), CueSchedule(), Assembler(SPECS)
    waiting: list[Cued] = []
    made: list[tuple[Cued, float]] = []
    for item in maker.items():
        if isinstance(item, Sent):
            if item.frames[0].startswith(b"features/"):
                schedule.add(decode_features(item.frames))
        else:
            waiting.append(item)
            schedule.cue(item.cue)
        while (due := schedule.due(0)) is not None:
            cue, messages = due
            assembler = Assembler(SPECS) if cue.reset else assembler
            for message in messages:
                assert assembler.push(message), assembler.last_refusal
            assembler.faults = dict(cue.absent)
            made.append((waiting.pop(0), digest(window_of(assembler, cue.t_end_ns))))
    assert not waiting, "a cue was never answered"
    schedule.cue(maker.end())
    assert schedule.due(0) is None
    assert schedule.finished
    return made


@pytest.mark.parametrize("seed", range(4))
def test_session_replays_bit_equal(tmp_path: Path, seed: int) -> None:
    events = live(12, seed)
    path = write(tmp_path / "a.mcap", events)
    made = replay(path)
    recorded = [what for _, what in events if isinstance(what, Prediction)]
    assert [cued.recorded.seq for cued, _ in made] == [p.seq for p in recorded]
    assert all(cued.exact for cued, _ in made)
    assert [value for _, value in made] == [digest_of(p) for p in recorded], (
        "a window differs from the one that was predicted from"
    )


def digest_of(prediction: Prediction) -> float:
    assert prediction.sentiment is not None
    return prediction.sentiment


@pytest.mark.parametrize("late", ["vision", "audio", "text", ""])
def test_late_recorder_with_the_last_window_replays_everything(tmp_path: Path, late: str) -> None:
    events = live(20)
    begun_ns = START_NS + 10 * NS_PER_S
    # Who subscribes is sent the last prediction at once, and the messages of the last eight seconds a little later.
    before = [(t_ns, what) for t_ns, what in events if t_ns < begun_ns]
    last = next(what for _, what in reversed(before) if isinstance(what, Prediction))
    recent = [
        # One worker may take a second longer than the others, and than the first predictions.
        (begun_ns + (1000 if what.modality == late else 50) * NS_PER_MS, what)
        for _, what in before
        if isinstance(what, FeatureWindow) and what.t_end_ns > begun_ns - 9 * NS_PER_S
    ]
    later = [(t_ns, what) for t_ns, what in events if t_ns >= begun_ns]
    path = write(tmp_path / "a.mcap", sorted([(begun_ns, last), *recent, *later], key=lambda item: item[0]))
    made = replay(path)
    assert len(made) > 150
    assert all(cued.exact for cued, _ in made)
    assert all(value == digest_of(cued.recorded) for cued, value in made)
    first = made[0][0]
    assert first.cue.reset
    assert first.cue.smoothed == (first.recorded.sentiment_smooth, first.recorded.t_end_ns)


def test_a_cue_follows_the_messages_that_it_names(tmp_path: Path) -> None:
    """Also where a recorder on a busy machine read a second's predictions before their features: a player waits for
    answers after some cues, and inference for the messages that these name."""
    heard = [((t_ns // NS_PER_S + 1) * NS_PER_S, what) for t_ns, what in live(12)]
    path = write(tmp_path / "a.mcap", sorted(heard, key=lambda item: (item[0], isinstance(item[1], FeatureWindow))))
    sent: set[tuple[str, int]] = set()
    cues = 0
    for item in CueMaker(open_recording(path)).items():
        if isinstance(item, Sent):
            message = decode_features(item.frames)
            sent.add((message.modality, message.seq))
        else:
            cues += 1
            named = {
                (name, seq) for name, spans in item.cue.inputs.items() for _, a, b in spans for seq in range(a, b + 1)
            }
            assert named <= sent
    assert cues > 200
    assert all(cued.exact and value == digest_of(cued.recorded) for cued, value in replay(path))


def test_without_the_last_window_the_replayable_range_is_reported(tmp_path: Path) -> None:
    events = [(t_ns, what) for t_ns, what in live(20) if t_ns >= START_NS + 8 * NS_PER_S]
    made = replay(write(tmp_path / "a.mcap", events))
    exact = [(cued, value) for cued, value in made if cued.exact]
    assert 80 < len(exact) < len(made)
    assert all(value == digest_of(cued.recorded) for cued, value in exact)
    assert not made[0][0].exact


def test_replay_is_equal_a_window_after_a_lost_message(tmp_path: Path) -> None:
    events = live(20)
    path = write(
        tmp_path / "a.mcap",
        events,
        keep=lambda what: not (isinstance(what, FeatureWindow) and what.modality == "audio" and what.seq in (100, 101)),
    )
    made = replay(path)
    assert len(made) == sum(isinstance(what, Prediction) for _, what in events)
    wrong = [cued.recorded.seq for cued, value in made if value != digest_of(cued.recorded)]
    assert wrong
    inexact = {cued.recorded.seq for cued, _ in made if not cued.exact}
    assert inexact.issuperset(wrong)
    assert made[0][0].exact
    assert made[-1][0].exact


def test_inputs_of_lost_predictions_are_replayed(tmp_path: Path) -> None:
    events = live(20)
    path = write(
        tmp_path / "a.mcap",
        events,
        keep=lambda what: not (isinstance(what, Prediction) and 100 <= what.seq < 110),
    )
    made = replay(path)
    assert all(value == digest_of(cued.recorded) for cued, value in made if cued.exact)
    assert made[-1][0].exact
    # All messages are there, so that in truth nothing differs.
    assert sum(value != digest_of(cued.recorded) for cued, value in made) == 0


def test_empty_cue_is_due_at_once(tmp_path: Path) -> None:
    events = [event for event in live(2) if isinstance(event[1], Prediction)]
    made = replay(write(tmp_path / "a.mcap", events))
    assert len(made) == len(events)
    assert not any(cued.exact for cued, _ in made)
    assert sessions.ABOUT.origin == "clip"
