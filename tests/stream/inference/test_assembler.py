"""The assembler as a table: what messages, in what order, give what window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mien.clock import NS_PER_MS, NS_PER_S
from mien.engines.ring import Ring
from mien.messages import FeatureWindow, ModalitySpec, Word
from mien.stream.inference.assembler import Assembler
from tests.windows import window_of

VISION = ModalitySpec("vision", 2, 10, 50, extractor="faces-1")
AUDIO = ModalitySpec("audio", 1, 50, 250)
TEXT = ModalitySpec("text", 3, 0, 50, snapshot=True)
SPECS = {"text": TEXT, "audio": AUDIO, "vision": VISION}
T0 = 1_000 * NS_PER_S


def frame(seq: int, t_ms: float, value: float = 1.0, *, valid: bool = True, run: int = 1) -> FeatureWindow:
    """One video row."""
    t_ns = T0 + int(t_ms * NS_PER_MS)
    return FeatureWindow(
        session="s",
        modality="vision",
        run=run,
        seq=seq,
        t_start_ns=t_ns,
        t_end_ns=t_ns,
        extractor="faces-1",
        values=np.full((1, 2), value, np.float32),
        valid=np.array([valid]),
        times_ns=np.array([t_ns]),
    )


def sound(seq: int, t_ms: int, rows: int = 2) -> FeatureWindow:
    """Audio rows that end at `t_ms`."""
    end_ns = T0 + t_ms * NS_PER_MS
    start_ns = end_ns - rows * 20 * NS_PER_MS
    return FeatureWindow(
        session="s",
        modality="audio",
        run=1,
        seq=seq,
        t_start_ns=start_ns,
        t_end_ns=end_ns,
        extractor="",
        values=np.full((rows, 1), seq + 1, np.float32),
        valid=np.ones(rows, bool),
        times_ns=start_ns + np.arange(rows) * 20 * NS_PER_MS,
    )


def speech(seq: int, t_ms: int, *words: tuple[str, int]) -> FeatureWindow:
    """A snapshot of words with their end times in ms."""
    ends = np.array([T0 + end * NS_PER_MS for _, end in words], np.int64)
    return FeatureWindow(
        session="s",
        modality="text",
        run=1,
        seq=seq,
        t_start_ns=T0 + max(t_ms - 5000, -5000) * NS_PER_MS,
        t_end_ns=T0 + t_ms * NS_PER_MS,
        extractor="",
        values=np.arange(1, len(words) + 1, dtype=np.float32)[:, None].repeat(3, 1),
        valid=np.ones(len(words), bool),
        times_ns=ends,
        words=tuple(Word(text, int(end) - 100, int(end)) for (text, _), end in zip(words, ends, strict=True)),
    )


def at(t_ms: float) -> int:
    return T0 + int(t_ms * NS_PER_MS)


def make() -> Assembler:
    return Assembler(SPECS, max_age_ms=500)


def test_nothing_received_is_absent_and_masked() -> None:
    window = window_of(make(), at(0))
    assert all(not mask.any() for mask in window.mask.values())
    assert window.absent == dict.fromkeys(SPECS, "nothing received")
    assert window.age_ms == dict.fromkeys(SPECS)


def test_row_is_in_the_last_slot_of_a_window_ending_with_it() -> None:
    assembler = make()
    assembler.push(frame(0, 42, 3.0))
    window = window_of(assembler, at(42))
    assert window.mask["vision"].tolist() == [0.0] * 49 + [1.0]
    assert window.features["vision"][-1].tolist() == [3.0, 3.0]
    assert window.age_ms["vision"] == 0.0
    assert "vision" not in window.absent


def test_rows_of_one_slot_are_averaged_and_invalid_ones_left_out() -> None:
    assembler = make()
    for seq, (value, valid) in enumerate([(1.0, True), (2.0, True), (50.0, False)]):
        assembler.push(frame(seq, 10 + seq * 30, value, valid=valid))
    window = window_of(assembler, at(70))
    assert window.features["vision"][-1].tolist() == [1.5, 1.5]
    assert window.age_ms["vision"] == pytest.approx(30.0)


def test_silent_modality_is_masked_with_the_workers_reason() -> None:
    assembler = make()
    assembler.push(frame(0, 0))
    assert "vision" not in window_of(assembler, at(500)).absent
    late = window_of(assembler, at(501))
    assert late.absent["vision"] == "nothing received for 0.5 s"
    assert not late.mask["vision"].any()
    assembler.explanations["vision"] = "camera unplugged"
    assert window_of(assembler, at(501)).absent["vision"] == "camera unplugged"


def test_modality_whose_messages_are_all_refused_says_why() -> None:
    assembler = make()
    assert not assembler.push(structs.replace(frame(0, 0), extractor="faces-2"))
    assert window_of(assembler, at(10)).absent["vision"] == "vision comes from 'faces-2', the model needs 'faces-1'"
    assert assembler.push(frame(1, 40))
    assert "vision" not in window_of(assembler, at(50)).absent
    assert window_of(assembler, at(600)).absent["vision"] == "nothing received for 0.6 s"


@pytest.mark.parametrize("interval_ms", [333, 500, 1000])
def test_slow_camera_is_masked_only_when_it_stops(interval_ms: int) -> None:
    assembler = make()
    seen = []
    for t_ms in range(0, 10_000, 50):
        if t_ms % interval_ms < 50 and (t_ms == 0 or t_ms // interval_ms > (t_ms - 50) // interval_ms):
            assembler.push(frame(t_ms // interval_ms, t_ms))
        if t_ms > interval_ms:
            seen.append("vision" not in window_of(assembler, at(t_ms)).absent)
    assert all(seen)
    assert "vision" in window_of(assembler, at(10_000 + 3100)).absent


def test_camera_that_was_slow_for_a_while_is_soon_missed_again() -> None:
    assembler, t_ms = make(), 0
    for seq, interval_ms in enumerate([30] * 9 + [900] * 9 + [30] * 9):
        t_ms += interval_ms
        assembler.push(frame(seq, t_ms))
    assert "vision" not in window_of(assembler, at(t_ms + 500)).absent
    assert "vision" in window_of(assembler, at(t_ms + 501)).absent


def test_no_face_is_a_masked_row_not_an_absent_modality() -> None:
    assembler = make()
    assembler.push(frame(0, 0, valid=False))
    window = window_of(assembler, at(0))
    assert not window.mask["vision"].any()
    assert "vision" not in window.absent
    assert window.age_ms["vision"] is None


def test_words_leave_the_window_one_by_one() -> None:
    assembler = make()
    assembler.push(speech(0, 3000, ("one", 1000), ("two", 2500)))
    window = window_of(assembler, at(3000))
    assert [word.text for word in window.words] == ["one", "two"]
    assert window.mask["text"].sum() == 2
    assert window.age_ms["text"] == pytest.approx(500.0)
    later = window_of(assembler, at(6500))
    assert [word.text for word in later.words] == ["two"]
    assert later.features["text"][0].tolist() == [2.0, 2.0, 2.0]
    assert later.mask["text"].sum() == 1


def test_newer_snapshot_applies_from_its_time() -> None:
    assembler = make()
    assembler.push(speech(0, 1000, ("helo", 900)))
    assembler.push(speech(1, 2000, ("hello", 900), ("there", 1800)))
    assert [w.text for w in window_of(assembler, at(2000)).words] == ["hello", "there"]
    assert [w.text for w in window_of(assembler, at(1500)).words] == ["helo"]


@pytest.mark.parametrize(
    ("messages", "drops"),
    [
        ([frame(0, 0), frame(1, 33), frame(2, 66)], {}),
        ([frame(0, 0), frame(3, 99)], {"lost": 2}),
        ([frame(0, 0), frame(2, 66), frame(1, 33)], {"late": 1}),
        ([frame(0, 0), frame(0, 0)], {"duplicate": 1}),
        ([frame(0, 0), frame(2, 66), frame(1, 33), frame(1, 33)], {"duplicate": 1, "late": 1}),
        ([frame(5, 0), frame(0, 33, run=2), frame(6, 66)], {"stale_run": 1}),
        ([frame(0, 0), frame(2**53 - 1, 33), frame(1, 66)], {"absurd_seq": 1}),
        ([frame(0, 0), frame(9, 33), frame(1, 66), frame(1, 99)], {"lost": 7, "duplicate": 1}),
        ([frame(0, 0), frame(2, 9000), frame(1, 33)], {"too_late": 1}),
        ([frame(0, 90_000), frame(1, 33)], {"clock_step": 1}),
    ],
)
def test_order_and_loss_are_counted(messages: list[FeatureWindow], drops: dict[str, int]) -> None:
    assembler = make()
    for message in messages:
        assembler.push(message)
    assert {cause: n for cause, n in assembler.drops.items() if n} == drops


def test_after_a_clock_step_backwards_new_rows_are_seen() -> None:
    assembler = make()
    assembler.push(frame(0, 90_000, 1.0))
    assembler.push(frame(1, 100, 2.0))
    window = window_of(assembler, at(100))
    assert window.features["vision"][-1, 0] == 2.0
    assert window.mask["vision"].sum() == 1


def test_restarted_worker_may_continue_from_any_number() -> None:
    assembler = make()
    assembler.push(frame(100, 0))
    assert assembler.push(frame(0, 100, run=2))
    assert assembler.push(frame(1, 200, run=2))
    assert assembler.drops["lost"] == 0
    assert window_of(assembler, at(200)).mask["vision"].sum() == 3


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"modality": "smell"}, "unknown_modality"),
        ({"values": np.zeros((1, 5), np.float32)}, "shape"),
        ({"extractor": "faces-2"}, "extractor"),
        ({"t_start_ns": at(99_000), "t_end_ns": at(99_000), "times_ns": np.array([at(99_000)])}, "future"),
    ],
)
def test_unusable_features_are_refused(changes: dict[str, object], cause: str) -> None:
    import msgspec

    assembler = make()
    assert not assembler.push(msgspec.structs.replace(frame(0, 0), **changes), now_ns=at(0))
    assert assembler.drops == {cause: 1}
    assert assembler.last_refusal
    assert not any(mask.any() for mask in window_of(assembler, at(0)).mask.values())


def test_sound_windows_advance_in_whole_hops() -> None:
    assembler = make()
    for seq in range(10):
        assembler.push(sound(seq, (seq + 1) * 40))
    changed = [window_of(assembler, at(t)).changed["audio"] for t in (300, 333, 366, 399, 400)]
    assert changed == [True, False, False, False, True]
    window = window_of(assembler, at(400))
    assert window.mask["audio"].sum() == 20
    assert window.features["audio"][-1, 0] == 10.0


@given(st.permutations(range(12)))
def test_any_order_of_arrival_gives_the_same_window(order: list[int]) -> None:
    messages = [frame(seq, seq * 33.0, float(seq)) for seq in range(12)]
    straight, shuffled = make(), make()
    straight.push(messages[0])
    shuffled.push(messages[0])
    for message in messages[1:]:
        straight.push(message)
    for index in order:
        shuffled.push(messages[index])
    for t_ms in (100, 200, 363):
        a, b = window_of(straight, at(t_ms)), window_of(shuffled, at(t_ms))
        assert np.array_equal(a.mask["vision"], b.mask["vision"])
        assert np.allclose(a.features["vision"], b.features["vision"], atol=1e-6)


def test_windows_count_as_changed_exactly_when_their_contents_do() -> None:
    assembler = make()
    assembler.push(frame(0, 0))
    assert window_of(assembler, at(20)).changed["vision"]
    assert not any(window_of(assembler, at(30)).changed.values())
    assembler.push(frame(1, 40, 5.0))
    changed = window_of(assembler, at(40)).changed
    assert changed["vision"]
    assert not changed["audio"]


def test_memory_is_bounded_and_old_rows_are_forgotten() -> None:
    assembler = make()
    for seq in range(20_000):
        assembler.push(frame(seq, seq * 5.0, float(seq)))
    window = window_of(assembler, at(19_999 * 5.0))
    assert window.mask["vision"].all()
    ring = assembler.windows.tracks["vision"]
    assert isinstance(ring, Ring)
    assert len(ring._crowded[0]) <= ring.capacity
    assert window.features["vision"][-1, 0] == pytest.approx(19_989.5, abs=10)


@pytest.mark.parametrize(
    "absurd", [{"seq": 2**53 - 1}, {"seq": 1 << 24}, {"seq": 0, "run": 99}, {"seq": 2**53 - 1, "run": 99}]
)
@pytest.mark.parametrize("ahead_ms", [0, 900, 2000])
def test_absurd_message_does_not_block_real_ones(absurd: dict[str, int], ahead_ms: int) -> None:
    """However it is numbered, and even if it pretends to come from two seconds ahead."""
    assembler = Assembler(SPECS)
    for seq in range(30):
        assert assembler.push(frame(seq, seq * 33), at(seq * 33))
    seq, run = absurd["seq"], absurd.get("run", 1)
    assembler.push(frame(seq, 30 * 33 + ahead_ms, run=run), at(30 * 33))
    accepted = [assembler.push(frame(seq, seq * 33), at(seq * 33)) for seq in range(31, 200)]
    silent_ms = accepted.index(True) * 33
    assert silent_ms <= ahead_ms + 1100
    assert all(accepted[accepted.index(True) :])
    assert sum(assembler.drops.values()) < 1 << 25


def doubted(message: FeatureWindow, *positions: int) -> FeatureWindow:
    """The same words, some of them uncertain."""
    words = tuple(structs.replace(word, uncertain=i in positions) for i, word in enumerate(message.words))
    valid = np.array([not word.uncertain for word in words])
    return structs.replace(message, words=words, valid=valid, reason="" if valid.any() else "not understood")


def test_uncertain_words_are_shown_but_masked_with_the_reason() -> None:
    assembler = make()
    assembler.push(doubted(speech(0, 1000, ("their", 400), ("shrank", 800)), 0, 1))
    window = window_of(assembler, at(1000))
    assert window.absent["text"] == "not understood"
    assert not window.mask["text"].any()
    assert window.age_ms["text"] is None
    assert [word.text for word in window.words] == ["their", "shrank"]
    assert all(word.uncertain for word in window.words)


def test_certain_words_among_uncertain_ones_count() -> None:
    assembler = make()
    assembler.push(doubted(speech(0, 1000, ("their", 400), ("love", 800)), 0))
    window = window_of(assembler, at(1000))
    assert "text" not in window.absent
    assert window.mask["text"].sum() == 1
    assert window.features["text"][0].tolist() == [2.0, 2.0, 2.0]
    assert [word.uncertain for word in window.words] == [True, False]
