"""Rows find their slot on the model's time axis: properties that hold for any rows at any rate."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mien.clock import NS_PER_S
from mien.messages import Bool, Float32, Int64, ModalitySpec
from mien.windowing import place_rows, slot_ns, slot_of

DAY = 1_700_000_000 * NS_PER_S
RATES = st.sampled_from([5.0, 10.0, 20.0, 25.0, 50.0, 100.0])


@st.composite
def instants(draw: st.DrawFn) -> tuple[ModalitySpec, Float32, Bool, Int64, int]:
    """A modality of instants, rows of it in time order, and the end of a window somewhere near them."""
    spec = ModalitySpec("vision", dim=3, rate_hz=draw(RATES), steps=draw(st.integers(1, 40)))
    offsets = sorted(draw(st.lists(st.integers(0, 4 * NS_PER_S), max_size=60)))
    count = len(offsets)
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=(count, spec.dim)).astype(np.float32)
    valid = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    times_ns = np.array(offsets, np.int64) + DAY
    return spec, values, valid, times_ns, DAY + draw(st.integers(0, 5 * NS_PER_S))


@given(instants())
def test_each_slot_is_the_mean_of_its_valid_rows(case: tuple[ModalitySpec, Float32, Bool, Int64, int]) -> None:
    spec, values, valid, times_ns, t_end_ns = case
    features, mask = place_rows(spec, values, valid, times_ns, t_end_ns)
    assert features.shape == (spec.steps, spec.dim)
    assert features.dtype == mask.dtype == np.float32
    last = slot_of(spec, t_end_ns)
    for index in range(spec.steps):
        slot = last - spec.steps + 1 + index
        inside = [row for row in range(len(values)) if valid[row] and slot_of(spec, int(times_ns[row])) == slot]
        assert mask[index] == bool(inside)
        expected = np.mean(values[inside], axis=0) if inside else np.zeros(spec.dim)
        np.testing.assert_allclose(features[index], expected, rtol=1e-5, atol=1e-6)


@given(instants(), st.integers(0, 60))
def test_row_keeps_its_slot_as_time_advances(case: tuple[ModalitySpec, Float32, Bool, Int64, int], later: int) -> None:
    spec, values, valid, times_ns, t_end_ns = case
    # Only rows that both windows could have seen, or the second would rightly know more.
    seen = times_ns <= t_end_ns
    rows = values[seen], valid[seen], times_ns[seen]
    features, mask = place_rows(spec, *rows, t_end_ns)
    moved_features, moved_mask = place_rows(spec, *rows, t_end_ns + later * slot_ns(spec))
    kept = max(spec.steps - later, 0)
    np.testing.assert_array_equal(moved_features[:kept], features[spec.steps - kept :])
    np.testing.assert_array_equal(moved_mask[:kept], mask[spec.steps - kept :])
    assert not moved_mask[kept:].any()
    assert not moved_features[kept:].any()


@given(instants())
def test_invalid_rows_are_ignored(case: tuple[ModalitySpec, Float32, Bool, Int64, int]) -> None:
    spec, values, valid, times_ns, t_end_ns = case
    spoiled = np.where(valid[:, None], values, np.float32(1e9))
    features, mask = place_rows(spec, spoiled, valid, times_ns, t_end_ns)
    expected, expected_mask = place_rows(spec, values[valid], valid[valid], times_ns[valid], t_end_ns)
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(mask, expected_mask)


@given(instants())
def test_future_rows_are_ignored(case: tuple[ModalitySpec, Float32, Bool, Int64, int]) -> None:
    spec, values, valid, times_ns, t_end_ns = case
    past = times_ns // slot_ns(spec) <= slot_of(spec, t_end_ns)
    features, mask = place_rows(spec, values, valid, times_ns, t_end_ns)
    expected, expected_mask = place_rows(spec, values[past], valid[past], times_ns[past], t_end_ns)
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(mask, expected_mask)


@given(RATES, st.integers(0, 10**6))
def test_a_whole_second_has_a_whole_number_of_slots(rate_hz: float, second: int) -> None:
    spec = ModalitySpec("audio", dim=1, rate_hz=rate_hz, steps=1)
    assert slot_ns(spec) * rate_hz == NS_PER_S
    assert slot_of(spec, (second + 1) * NS_PER_S) - slot_of(spec, second * NS_PER_S) == rate_hz
    assert slot_of(spec, second * NS_PER_S) == second * rate_hz


@given(st.integers(0, 30), st.integers(1, 10), st.data())
def test_words_are_ordered_and_the_last_are_kept(count: int, steps: int, data: st.DataObject) -> None:
    spec = ModalitySpec("text", dim=2, rate_hz=0, steps=steps, snapshot=True)
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2) + 1
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    times_ns = DAY + np.arange(count, dtype=np.int64) * NS_PER_S
    heard = data.draw(st.integers(0, count))
    features, mask = place_rows(spec, values, valid, times_ns, DAY + heard * NS_PER_S - 1)
    kept = values[:heard][valid[:heard]][-steps:]
    np.testing.assert_array_equal(features[: len(kept)], kept)
    np.testing.assert_array_equal(mask, (np.arange(steps) < len(kept)).astype(np.float32))
    assert not features[len(kept) :].any()
