from __future__ import annotations

import numpy as np
import pytest

from mien.stream.modalities.slots import SlotClock

SLOT = 20_000_000


def centres(count: int, ppm: float = 0.0, start_ns: int = 10**15, jitter_ns: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    steps = np.arange(count) * SLOT * (1 + ppm * 1e-6)
    return (start_ns + SLOT // 2 + steps + rng.uniform(-jitter_ns, jitter_ns, count)).astype(np.int64)


@pytest.mark.parametrize("start_ns", [0, 1, SLOT // 2, SLOT - 1])
@pytest.mark.parametrize("jitter_ns", [0.0, 2e6])
def test_without_drift_every_row_gets_the_next_slot(start_ns: int, jitter_ns: float) -> None:
    clock = SlotClock(50)
    index, slots = clock.place(centres(5000, 0.0, 10**15 + start_ns, jitter_ns))
    assert np.array_equal(index, np.arange(5000))
    assert np.array_equal(np.diff(slots), np.ones(4999))
    assert clock.slips == 0


@pytest.mark.parametrize("ppm", [-300.0, -50.0, 50.0, 300.0])
def test_drift_is_followed_without_empty_slots(ppm: float) -> None:
    clock = SlotClock(50)
    times = centres(180_000, ppm, jitter_ns=1e6)  # an hour
    index, slots = clock.place(times)
    assert np.array_equal(np.diff(slots), np.ones(len(slots) - 1))
    assert abs(clock.slips - 180_000 * abs(ppm) * 1e-6) <= 1
    stands_off = np.abs(times[index] - (slots * SLOT + SLOT // 2))
    assert stands_off.max() <= 1.3 * SLOT
    assert np.diff(index).min() >= 0


def test_missing_sound_leaves_slots_empty() -> None:
    clock = SlotClock(50)
    first = centres(10)
    _, before = clock.place(first)
    _, after = clock.place(first + 10 * SLOT + 100 * SLOT)
    assert after[0] - before[-1] == 101
    assert clock.slips == 0


def test_time_never_goes_back() -> None:
    clock = SlotClock(50)
    _, before = clock.place(centres(10))
    _, after = clock.place(centres(10))  # a device opened again whose times overlap those of before
    assert len(after) == 0
    _, later = clock.place(centres(30))
    assert later[0] == before[-1] + 1


def test_chunking_changes_nothing() -> None:
    times = centres(20_000, 200.0, jitter_ns=3e6)
    whole = SlotClock(50).place(times)
    clock = SlotClock(50)
    parts = [clock.place(part) for part in np.split(times, range(7, 20_000, 7))]
    assert np.array_equal(np.concatenate([slots for _, slots in parts]), whole[1])
