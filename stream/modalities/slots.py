"""Assigns a device's rows to slots fixed in absolute time, one row per slot.

A sound card's clock drifts some 50 ppm from the session's, so its 50 Hz rows slowly slide along the session's slots.
Rounding each row's time would alternate between double and empty slots while rows are close to a slot border.
Instead rows fill consecutive slots until they are clearly closer to the next or the previous one: then one row is
repeated or dropped, once in minutes.
"""

from __future__ import annotations

import numpy as np

from mien.clock import NS_PER_S
from mien.messages import Int64

SLIP = 0.75  # of a slot: how far a row may be from its slot's centre; a slot ends at half
GAP = 10  # slots: rows further ahead than this follow a gap, and the slots between stay empty


class SlotClock:
    """Assigns slots to rows in order. Never two rows in a slot, never backwards.

    Attributes:
        slips: rows repeated or dropped since the start, to follow the session's clock.
    """

    def __init__(self, rate_hz: float) -> None:
        self.slot_ns = round(NS_PER_S / rate_hz)
        self.slips = 0
        self._next: int | None = None

    def place(self, times_ns: Int64) -> tuple[Int64, Int64]:
        """Slots for rows.

        Args:
            times_ns: shape (n,), session time of each row's centre; may drift, but not jump back.

        Returns:
            index (m,) into the rows, and slot (m,), strictly increasing.
        """
        index, slots = [], []
        for row, t_ns in enumerate(times_ns.tolist()):
            nearest = t_ns // self.slot_ns
            if self._next is None:
                self._next = nearest
            ahead = (t_ns - self._next * self.slot_ns) / self.slot_ns - 0.5  # slots from the slot's centre
            if ahead < -SLIP:
                self.slips += 1
                continue
            if ahead > GAP:
                self._next = nearest
            elif ahead > SLIP:
                self.slips += 1
                index.append(row)
                slots.append(self._next)
                self._next += 1
            index.append(row)
            slots.append(self._next)
            self._next += 1
        return np.array(index, np.int64), np.array(slots, np.int64)
