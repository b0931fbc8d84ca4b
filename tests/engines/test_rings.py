"""Cached windows are bit-equal to rebuilt ones, and track their changes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien.clock import NS_PER_MS, NS_PER_S
from mien.engines.ring import FOREVER_NS, Ring
from mien.engines.rings import Windows
from mien.engines.snapshots import NEVER, SPAN_NS, Snapshots
from mien.messages import FeatureWindow, Float32, ModalitySpec, Word
from mien.stream.inference.prediction import Live
from mien.windowing import WINDOW_NS, place_rows

T0 = 1_000 * NS_PER_S
PLACES = 3


class Rows:
    """The rows written for one session, in order of arrival, and the window that `place_rows` makes of them."""

    def __init__(self, spec: ModalitySpec) -> None:
        self.spec = spec
        self.values = np.zeros((0, spec.dim), np.float32)
        self.valid = np.zeros(0, bool)
        self.times_ns = np.zeros(0, np.int64)

    def add(self, values: Float32, valid: np.ndarray, times_ns: np.ndarray) -> None:
        self.values = np.concatenate([self.values, values])
        self.valid, self.times_ns = np.append(self.valid, valid), np.append(self.times_ns, times_ns)

    def window(self, end_ns: int) -> tuple[Float32, Float32]:
        order = np.argsort(self.times_ns, kind="stable")
        order = order[self.times_ns[order] <= end_ns]
        return place_rows(self.spec, self.values[order], self.valid[order], self.times_ns[order], end_ns)

    def newest_ns(self, t_end_ns: int) -> int:
        seen = self.times_ns[self.valid & (self.times_ns <= t_end_ns) & (self.times_ns > t_end_ns - WINDOW_NS)]
        return int(seen.max()) if len(seen) else NEVER


def history(spec: ModalitySpec, random: np.random.Generator) -> Iterator[tuple[int, Float32, np.ndarray, np.ndarray]]:
    """Chunks of rows of several sessions: on time, late, early, in bursts, duplicate times, invalid."""
    now_ns = T0
    pace_ns = int(NS_PER_S / random.choice([7, 30, 50, 240]))
    for _ in range(int(random.integers(1, 30))):
        now_ns += int(random.choice([0, pace_ns, 3 * pace_ns, NS_PER_S]))
        rows = int(random.integers(0, 6))
        steps = random.integers(-2, 3, rows) * pace_ns // int(random.choice([1, 3]))
        times_ns = now_ns + steps + int(random.choice([0, 0, -NS_PER_S]))
        values = random.standard_normal((rows, spec.dim)).astype(np.float32) * np.float32(
            10.0 ** random.integers(-3, 4)
        )
        values[random.random(values.shape) < 0.1] = -0.0
        yield int(random.integers(PLACES)), values, random.random(rows) < 0.85, times_ns.astype(np.int64)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), rate_hz=st.sampled_from([5.0, 10.0, 50.0]), steps=st.sampled_from([1, 10, 50]))
def test_rolling_windows_equal_rebuilt_ones(seed: int, rate_hz: float, steps: int) -> None:
    check_history(seed, rate_hz, steps)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_rolling_windows_equal_rebuilt_ones_in_many_histories() -> None:
    for seed in range(10_000):
        check_history(seed, (5.0, 10.0, 50.0)[seed % 3], (1, 10, 50)[seed // 3 % 3])


def check_history(seed: int, rate_hz: float, steps: int) -> None:
    random = np.random.default_rng(seed)
    spec = ModalitySpec("m", 2, rate_hz, steps)
    # No row comes, and no window ends, as late as a live session bounds it.
    late_ns = FOREVER_NS if seed % 2 else Live.late_ns
    ring, rows = Ring(spec, PLACES, late_ns=late_ns), [Rows(spec) for _ in range(PLACES)]
    ring.together = (1, 3, 12)[seed // 9 % 3]
    shown: list[tuple[bytes, bytes] | None] = [None] * PLACES
    for place, values, valid, times_ns in history(spec, random):
        ring.write(place, values, valid, times_ns)
        rows[place].add(values, valid, times_ns)
        if random.random() < 0.5:
            continue
        places = random.permutation(PLACES)[: random.integers(1, PLACES + 1)]
        newest_ns = max(int(r.times_ns.max(initial=T0)) for r in rows)
        t_end_ns = newest_ns + random.integers(-NS_PER_S, NS_PER_S, len(places)) * random.integers(0, 2, len(places))
        if len(places) == 1:
            end_ns, news, newest_of_one_ns = ring.look_at_one(int(places[0]), int(t_end_ns[0]))
            ends_ns, changed = np.array([end_ns]), np.array([news])
            assert newest_of_one_ns == ring.newest_ns(places, t_end_ns)[0]
        else:
            ends_ns, changed = ring.look(places, t_end_ns)
        features, mask = ring.gather(places, ends_ns)
        for index, place in enumerate(places.tolist()):
            want = rows[place].window(int(ends_ns[index]))
            made = features[index].tobytes(), mask[index].tobytes()
            assert made == (want[0].tobytes(), want[1].tobytes())
            assert changed[index] or made == shown[place]
            shown[place] = made
        assert ring.newest_ns(places, t_end_ns).tolist() == [
            rows[place].newest_ns(int(t_ns)) for place, t_ns in zip(places, t_end_ns, strict=True)
        ]


def test_crowded_slots_keep_rows_only_while_they_can_change() -> None:
    spec = ModalitySpec("m", 1000, 50.0, 50)
    ring = Ring(spec, 1, late_ns=NS_PER_S)

    def write(t_ns: int) -> None:
        ring.write(0, np.ones((1, spec.dim), np.float32), np.ones(1, bool), np.array([t_ns]))

    tracemalloc.start()
    taken = []
    for second in range(8):
        for row in range(500):  # ten times as many as there are slots
            write(T0 + second * NS_PER_S + row * 2 * NS_PER_MS)
        taken.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert taken[-1] < 1.5 * taken[1]
    end_ns = np.array([T0 + 7 * NS_PER_S])
    before = ring.gather(np.zeros(1, np.int64), end_ns)[0].copy()
    write(int(end_ns[0]) - NS_PER_S // 2 - NS_PER_S)
    assert np.array_equal(ring.gather(np.zeros(1, np.int64), end_ns)[0], before)


def test_window_read_twice_is_unchanged() -> None:
    ring = Ring(ModalitySpec("m", 1, 50, 250), 1)
    one = np.ones((1, 1), np.float32), np.ones(1, bool)
    place = np.zeros(1, np.int64)
    ring.write(0, *one, np.array([T0]))

    def changed(t_ms: int) -> bool:
        return bool(ring.look(place, np.array([T0 + t_ms * NS_PER_MS]))[1][0])

    # Dense rows are looked at in hops of 100 ms; what comes behind the hop's end changes nothing yet.
    assert [changed(t_ms) for t_ms in (100, 130, 199, 200)] == [True, False, False, True]
    ring.write(0, *one, np.array([T0 + 250 * NS_PER_MS]))
    assert not changed(290)
    ring.write(0, *one, np.array([T0 + 150 * NS_PER_MS]))
    assert [changed(t_ms) for t_ms in (290, 300)] == [True, True]


def test_sessions_are_separate_and_can_be_cleared() -> None:
    spec = ModalitySpec("m", 1, 10, 50)
    ring, places = Ring(spec, 2), np.arange(2)
    for place in (0, 1):
        ring.write(place, np.full((2, 1), place + 1, np.float32), np.ones(2, bool), np.full(2, T0))
    ring.clear(1)
    features, mask = ring.gather(places, np.full(2, T0))
    assert features[:, -1, 0].tolist() == mask[:, -1].tolist() == [1.0, 0.0]
    assert ring.newest_ns(places, np.full(2, T0)).tolist() == [T0, NEVER]


def test_rows_from_before_the_span_are_not_mixed_with_new_ones() -> None:
    spec = ModalitySpec("m", 1, 10, 50)
    ring = Ring(spec, 1)
    lap_ns = ring.capacity * ring.slot_ns
    assert lap_ns >= SPAN_NS
    one = np.ones((1, 1), np.float32), np.ones(1, bool)
    ring.write(0, *one, np.array([T0 + lap_ns]))
    ring.write(0, 5 * one[0], one[1], np.array([T0]))
    features, mask = ring.gather(np.zeros(1, np.int64), np.array([T0 + lap_ns]))
    assert features[0, -1, 0] == mask[0].sum() == 1.0


def words(t_end_ms: int, *texts: tuple[str, int], committed: bool = True, settle_ms: int = 0) -> FeatureWindow:
    ends_ns = [T0 + end_ms * NS_PER_MS for _, end_ms in texts]
    return FeatureWindow(
        session="s", modality="text", run=1, seq=0, t_start_ns=T0, t_end_ns=T0 + t_end_ms * NS_PER_MS, extractor="",
        values=np.arange(1, len(texts) + 1, dtype=np.float32)[:, None], valid=np.ones(len(texts), bool),
        times_ns=np.array(ends_ns, np.int64),
        words=tuple(
            Word(text, end_ns - 1, end_ns, committed) for (text, _), end_ns in zip(texts, ends_ns, strict=True)
        ),
        counts_from_ns=settle_ms and T0 + (t_end_ms + settle_ms) * NS_PER_MS,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(-3000, 200), st.integers(0, 4), st.sampled_from([0, 300, 1200])),
        max_size=12,
    ),
    st.data(),
)
def test_words_come_from_the_newest_message_from_its_time(
    pieces: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    spec = ModalitySpec("text", 1, 0, 3, snapshot=True)
    kept, messages, t_ms, before = Snapshots(spec, 1), [], 0, None
    place = np.zeros(1, np.int64)
    for pause_ms, end_ms, count, settle_ms in pieces:
        t_ms += pause_ms
        spoken = ((str(k), t_ms + end_ms + 90 * k) for k in range(count))
        messages.append(words(t_ms, *spoken, settle_ms=settle_ms))
        kept.write(0, messages[-1])
        for back_ms in data.draw(st.lists(st.integers(-6000, 1000), max_size=4)):
            t_ns = T0 + (t_ms - back_ms) * NS_PER_MS
            ends_ns, changed = kept.look(place, np.array([t_ns]))
            (features,), (mask,) = kept.gather(place, ends_ns)
            seen = [message for message in messages if message.t_end_ns <= t_ns]
            newest = seen[-1] if seen else words(0)
            counting = [message for message in seen if message.counts_from_ns <= t_ns]
            counted = counting[-1] if counting else words(0)
            inside = counted.times_ns > t_ns - WINDOW_NS
            want = place_rows(spec, counted.values, inside, counted.times_ns, t_ns)
            assert np.array_equal(features, want[0])
            assert np.array_equal(mask, want[1])
            assert kept.words[0] == tuple(w for w in newest.words if w.t_end_ns > t_ns - WINDOW_NS)
            assert kept.transcripts[0].committed == " ".join(w.text for w in kept.words[0])
            made = features.tobytes(), mask.tobytes()
            assert changed[0] == (before is None or made != before)
            before = made


def test_returning_modality_is_shown_again() -> None:
    spec = ModalitySpec("m", 1, 10, 50)
    windows = Windows({"m": spec})
    place = windows.take_place()
    track = windows.tracks["m"]
    assert isinstance(track, Ring)
    track.write(place, np.ones((1, 1), np.float32), np.ones(1, bool), np.array([T0]))

    def look(t_ms: int) -> tuple[bool, bool]:
        seen = windows.look([place], [T0 + t_ms * NS_PER_MS])
        return bool(seen.present[0, 0]), bool(seen.changed[0, 0])

    assert look(0) == (False, False)
    windows.until_ns[place] = T0 + NS_PER_S
    assert [look(t_ms) for t_ms in (0, 50, 100)] == [(True, True), (True, False), (True, True)]
    assert look(1100) == (False, False)
    windows.until_ns[place] = T0 + 2 * NS_PER_S
    assert look(1100) == (True, True)
    with pytest.raises(IndexError):
        windows.take_place()
