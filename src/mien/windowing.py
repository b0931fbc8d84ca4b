"""Placing rows on the model's time axis. One function for training and for the live stream.

Rows of instants (frames, hops) fall into slots of `1 / rate_hz` seconds that are fixed in absolute time: slot k covers
[k, k + 1) / rate_hz. A window is the last `steps` slots up to and including the slot of its end. Because slots do not
move with the window, a row never changes its slot while time goes on, and rows that are there give the same features
whenever they are looked at. Rows that are words have no rate: the last `steps` of them stand in order from index 0.
"""

from __future__ import annotations

import numpy as np

from mien.clock import NS_PER_S
from mien.messages import Bool, Float32, Int64, ModalitySpec


def slot_ns(spec: ModalitySpec) -> int:
    """Length of a slot in ns. Rates are chosen so that it is a whole number: integer time never drifts."""
    return round(NS_PER_S / spec.rate_hz)


def slot_of(spec: ModalitySpec, t_ns: int) -> int:
    """The slot that an instant falls into."""
    return t_ns // slot_ns(spec)


def place_rows(
    spec: ModalitySpec, values: Float32, valid: Bool, times_ns: Int64, t_end_ns: int
) -> tuple[Float32, Float32]:
    """Rows to one window.

    Several valid rows in one slot are averaged: a 60 fps and a 15 fps camera look alike to the model.

    Args:
        values: (n, dim) in time order. valid: (n,). times_ns: (n,).
        t_end_ns: end of the window; rows in later slots are left out.

    Returns:
        features (steps, dim), zero where nothing was observed, and mask (steps,), 1 = observed.
    """
    features = np.zeros((spec.steps, spec.dim), np.float32)
    mask = np.zeros(spec.steps, np.float32)
    if spec.rate_hz == 0:
        kept = values[valid & (times_ns <= t_end_ns)][-spec.steps :]
        features[: len(kept)] = kept
        mask[: len(kept)] = 1.0
        return features, mask
    slots = times_ns // slot_ns(spec) - (slot_of(spec, t_end_ns) - spec.steps + 1)
    inside = valid & (slots >= 0) & (slots < spec.steps)
    counts = np.bincount(slots[inside], minlength=spec.steps)
    np.add.at(features, slots[inside], values[inside])
    filled = counts > 0
    features[filled] /= counts[filled, None].astype(np.float32)
    mask[filled] = 1.0
    return features, mask
