"""Rows of a device onto slots that are fixed in absolute time, one row a slot.

A sound card counts seconds with a crystal of its own, some 50 ppm off, so its fiftieths of a second slowly slide
along the session's. Rounding each row's time would put two rows into one slot and none into the next again and
again while a row's time lies near a border. Here rows simply follow each other, until they stand clearly nearer to
the next slot or the last one: then one row is repeated or left out, once in minutes.
"""

from __future__ import annotations

import numpy as np

from mien.clock import NS_PER_S
from mien.messages import Int64

SLIP = 0.75  # of a slot: how far a row may stand from its slot's centre. Half of a slot is where it begins
GAP = 10  # slots: further ahead than this, rows are missing, and the slots between stay empty


class SlotClock:
    """Assigns slots to rows in order. Never two rows in a slot, never backwards.

    Args:
        rate_hz: slots per second.

    Attributes:
        slips: rows that were repeated or left out since the start, to follow the session's clock.
    """

    def __init__(self, rate_hz: float) -> None:
        self.slot_ns = round(NS_PER_S / rate_hz)
        self.slips = 0
        self._next: int | None = None

    def place(self, times_ns: Int64) -> tuple[Int64, Int64]:
        """Slots for rows.

        Args:
            times_ns: shape (n,), where each row's centre lies in session time; may creep, but not jump back.

        Returns:
            index (m,) into the rows, and slot (m,), rising strictly.
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
