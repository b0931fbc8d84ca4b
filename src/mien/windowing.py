"""Places rows on the model's time axis: the single definition for training, clips and the live stream.

Rows of instants (frames, hops) fall into slots of `1 / rate_hz` seconds that are fixed in absolute time: slot k covers
[k, k + 1) / rate_hz. A window is the last `steps` slots up to and including the slot of its end. Because slots do not
move with the window, a row never changes its slot: it can be placed once and kept (see `mien.engines.ring`). Rows of
words have no rate: the last `steps` of them stand in order from index 0.
"""

from __future__ import annotations

import numpy as np

from mien.clock import NS_PER_S
from mien.messages import Bool, Float32, Int64, ModalitySpec

WINDOW_NS = 5 * NS_PER_S  # how far back the model looks, and how long a word counts


def slot_ns(spec: ModalitySpec) -> int:
    """Length of a slot in ns. Rates are chosen to make it a whole number: integer time never drifts."""
    return round(NS_PER_S / spec.rate_hz)


def slot_of(spec: ModalitySpec, t_ns: int) -> int:
    """The slot that an instant falls into."""
    return t_ns // slot_ns(spec)


def average_slots(values: Float32, slots: Int64, count: int) -> tuple[Float32, Float32]:
    """Mean of the rows in each slot: a 60 fps and a 15 fps camera look alike to the model.

    The rows of a slot are added sequentially in float32, in the order given, so that the same rows give the same bits
    whether they arrive together or one at a time.

    Args:
        values: (n, dim). slots: (n,), each in 0 ... count - 1.

    Returns:
        means (count, dim), zero in empty slots, and mask (count,), 1 = slot has a row.
    """
    means = np.zeros((count, values.shape[1]), np.float32)
    hits = np.bincount(slots, minlength=count)
    if len(slots):
        order = np.argsort(slots, kind="stable")
        first = np.cumsum(hits) - hits
        turn = np.arange(len(slots)) - first[slots[order]]
        # The first rows of all slots at once, then the second ones, and so on: few passes, no slot twice in one.
        for number in range(int(hits.max())):
            rows = order[turn == number]
            means[slots[rows]] += values[rows]
    filled = hits > 0
    means[filled] /= hits[filled, None].astype(np.float32)
    return means, filled.astype(np.float32)


def last_rows(spec: ModalitySpec, values: Float32) -> tuple[Float32, Float32]:
    """Rows of words to one window: the last `steps` in order from index 0; features and mask as in `place_rows`."""
    features, mask = np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
    kept = values[-spec.steps :]
    features[: len(kept)], mask[: len(kept)] = kept, 1.0
    return features, mask


def cut_window(
    spec: ModalitySpec, values: Float32, mask: Float32, t_end_ns: int, t_start_ns: int = 0
) -> tuple[Float32, Float32]:
    """Rows placed before, one per slot from slot 0, to one window without the slots before that of `t_start_ns`.

    Args:
        values: (n, dim). mask: (n,).

    Returns:
        features and mask as in `place_rows`.
    """
    features, seen = np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
    first = slot_of(spec, t_end_ns) - spec.steps + 1
    begin = max(first, slot_of(spec, t_start_ns), 0)
    end = min(first + spec.steps, len(values))
    if end > begin:
        features[begin - first : end - first], seen[begin - first : end - first] = values[begin:end], mask[begin:end]
    return features, seen


def place_rows(
    spec: ModalitySpec, values: Float32, valid: Bool, times_ns: Int64, t_end_ns: int
) -> tuple[Float32, Float32]:
    """Rows to one window. Several valid rows in one slot are averaged.

    Args:
        values: (n, dim) in time order. valid: (n,). times_ns: (n,).
        t_end_ns: end of the window; rows in later slots are left out.

    Returns:
        features (steps, dim), zero where nothing was observed, and mask (steps,), 1 = observed.
    """
    if spec.rate_hz == 0:
        return last_rows(spec, values[valid & (times_ns <= t_end_ns)])
    slots = times_ns // slot_ns(spec) - (slot_of(spec, t_end_ns) - spec.steps + 1)
    inside = valid & (slots >= 0) & (slots < spec.steps)
    return average_slots(values[inside], slots[inside], spec.steps)
