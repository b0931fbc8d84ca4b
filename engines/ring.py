"""The rows of one modality, of all sessions of a process: each is written once, and a batch of windows is one gather.

A row never changes its slot, so a timestamped modality is a ring over slots, all sessions in one array: a new row
changes one slot, and a window is a slice of the ring. Rows that have come for many sessions are placed together, with
a few operations on arrays. Windows are bit-equal to those of `mien.windowing.place_rows` for the same rows in time
order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mien.clock import NS_PER_MS
from mien.engines.snapshots import NEVER, SPAN_NS
from mien.messages import Bool, Float32, Int64, ModalitySpec
from mien.windowing import WINDOW_NS, slot_ns

FOREVER_NS = 1 << 62
_HOP_NS = 100 * NS_PER_MS  # dense modalities advance in these steps: their encoding is reused in between
_MOST_WAITING = 256  # messages, each of at most `_MOST_ROWS`
_MOST_ROWS = 16
_Message = tuple[int, Float32, Bool, Int64]
_Row = tuple[int, int, Float32]  # time, number, values


class Ring:
    """Timestamped rows of many sessions.

    Args:
        spec: the modality. places: session capacity. span_ns: how much time is kept of each.
        late_ns: rows older than the newest by more than this no longer join a slot that has rows. It bounds the memory
            taken by a publisher that sends many rows a slot.

    Attributes:
        means: (places, width, dim), the mean of each slot's rows. Slot k is at k modulo capacity, and the first
            ones are repeated after the last, so that every window is contiguous.
        written: flat indices (place x width + position) of slots written since the list was last emptied; None
            until a list is set.
        together: from how many messages on they are placed together; fewer cost less one by one.
    """

    together = 12

    def __init__(self, spec: ModalitySpec, places: int, span_ns: int = SPAN_NS, late_ns: int = FOREVER_NS) -> None:
        self.spec = spec
        self.slot_ns = slot_ns(spec)
        self._late_ns = late_ns
        self.capacity = 1 << (max(span_ns // self.slot_ns, spec.steps) - 1).bit_length()
        self.width = self.capacity + spec.steps - 1
        self.means = np.zeros((places, self.width, spec.dim), np.float32)
        self.written: list[int] | None = None
        self._slots = np.full((places, self.width), NEVER, np.int64)
        self._newest_ns = np.full((places, self.capacity), NEVER, np.int64)  # of each slot's rows
        self._latest_ns = np.full(places, NEVER, np.int64)  # of all rows
        self._looked = np.full(places, NEVER, np.int64)  # last slot of the window looked at; NEVER if it has changed
        self._crowded = [_Crowds() for _ in range(places)]
        self._waiting: list[_Message] = []  # not yet placed
        # Sum and number of rows in the newest slot, where all of them were placed together with other sessions' rows.
        self._totals = np.zeros((places, spec.dim), np.float32)
        self._summed = np.zeros(places, np.int64)
        self._zeros = np.zeros(spec.dim, np.float32)
        self._back = np.arange(1 - spec.steps, 1)
        self._most_step = self.capacity // _MOST_ROWS  # between two rows of a message, so that none overtakes another
        # Sparse rows (video) are visible up to the instant, dense ones up to the last whole hop.
        self._hop_ns = 0 if self.slot_ns >= _HOP_NS else _HOP_NS

    def reserve(self, place: int) -> None:
        """Have the memory of a session's rows ready: the system clears a page when it is first written to."""
        self.means[place] = 0.0

    def clear(self, place: int) -> None:
        self._place_waiting()
        self._summed[place] = 0
        self._slots[place] = self._newest_ns[place] = NEVER
        self._latest_ns[place] = self._looked[place] = NEVER
        self._crowded[place].clear()

    def write(self, place: int, values: Float32, valid: Bool, times_ns: Int64) -> None:
        """Rows of a session, in any order: (n, dim), (n,), (n,). They are placed when a window is next looked at."""
        if len(values) > _MOST_ROWS or len(self._waiting) >= _MOST_WAITING:
            self._place_waiting()
        if len(values) > _MOST_ROWS:
            self._place(place, values, valid, times_ns)
        else:
            self._waiting.append((place, values, valid, times_ns))

    def _place_waiting(self) -> None:
        """Place all rows written until now, those of many sessions together."""
        waiting, self._waiting = self._waiting, []
        while len(waiting) >= self.together and len(rest := self._place_together(waiting)) < len(waiting):
            waiting = rest
        for message in waiting:
            self._place(*message)

    def _place_together(self, waiting: list[_Message]) -> list[_Message]:
        """Place each session's first message if its rows are newer than all before. Returns the other messages."""
        first: dict[int, _Message] = {}
        for message in waiting:
            first.setdefault(message[0], message)
        chosen = list(first.values())
        places = np.repeat(np.array(list(first), np.int64), [len(message[3]) for message in chosen])
        values, valid, times_ns = (np.concatenate([message[part] for message in chosen]) for part in (1, 2, 3))
        used, slow = valid, set[int]()
        while True:
            rows = np.flatnonzero(used)
            at_places, at_ns = places[rows], times_ns[rows]
            slots = at_ns // self.slot_ns
            at = slots & (self.capacity - 1)
            begins = np.append(True, at_places[1:] != at_places[:-1])[: len(rows)]
            before_ns = np.where(begins, self._latest_ns[at_places], np.append(NEVER, at_ns[:-1])[: len(rows)])
            steps = slots - np.append(0, slots[:-1])[: len(rows)]
            joins = self._slots[at_places, at] == slots
            in_turn = np.where(begins, ~joins | (self._summed[at_places] > 0), (steps > 0) & (steps <= self._most_step))
            if (good := in_turn & (at_ns > before_ns)).all():
                break
            slow.update(at_places[~good].tolist())
            used = used & ~np.isin(places, list(slow))
        used_values = values if len(rows) == len(values) else values[rows]
        self._place_newer(at_places, at, slots, at_ns, used_values, begins, joins)
        return [message for message in waiting if message is not first[message[0]] or message[0] in slow]

    def _place_newer(
        self, places: Int64, at: Int64, slots: Int64, times_ns: Int64, values: Float32, begins: Bool, joins: Bool
    ) -> None:
        """Place rows that are newer than all before, in order; only a session's first may join the newest slot."""
        before = (self._latest_ns[places] - self._late_ns) // self.slot_ns
        # Lists first: reading a number from an array takes longer than the rest of the loop.
        for place, old, settled, joined in _lists(places, self._slots[places, at], before, joins):
            if not joined and (crowded := self._crowded[place]):
                crowded.pop(old, None)
                crowded.settle(settled)
        totals, count = values + np.float32(0.0), np.ones(len(places), np.int64)  # no copy: see `_place`
        means = totals
        if joins.any():
            to = np.flatnonzero(joins)
            to_places, to_at = places[to], at[to]
            means = self.means[to_places, to_at]
            numbers = _lists(to_places, slots[to], self._newest_ns[to_places, to_at], times_ns[to])
            for (place, slot, newest_ns, t_ns), mean, row in zip(numbers, means, values[to], strict=True):
                # A copy, since a view would keep the rows of all sessions.
                self._crowded[place].append(slot, newest_ns, mean, t_ns, row.copy())
            totals[to] += self._totals[places[to]]
            count[to] += self._summed[places[to]]
            means = totals.copy()
            means[to] /= count[to, None].astype(np.float32)
        ends = np.append(begins[1:], True)[: len(places)]
        self._totals[places[ends]], self._summed[places[ends]] = totals[ends], count[ends]
        self._latest_ns[places[ends]] = times_ns[ends]
        self._looked[places[slots <= self._looked[places]]] = NEVER
        self._newest_ns[places, at] = times_ns
        flat = places * self.width + at
        again = np.flatnonzero(at + self.capacity < self.width)
        for to, rows in ((flat, slice(None)), (flat[again] + self.capacity, again)):
            self._slots.reshape(-1)[to] = slots[rows]
            self.means.reshape(-1, self.spec.dim)[to] = means[rows]
            if self.written is not None:
                self.written += to.tolist()

    def _place(self, place: int, values: Float32, valid: Bool, times_ns: Int64) -> None:
        """Place the rows of a message one by one, whatever their order."""
        self._summed[place] = 0
        slots, newest_ns, means = self._slots[place], self._newest_ns[place], self.means[place]
        crowded, written, first = self._crowded[place], self.written, place * self.width
        looked, latest_ns = self._looked.item(place), self._latest_ns.item(place)
        for row, is_valid, t_ns in zip(values, valid.tolist(), times_ns.tolist(), strict=True):
            if not is_valid:
                continue
            slot = t_ns // self.slot_ns
            at = slot & (self.capacity - 1)
            held = slots.item(at)
            if held > slot:
                continue  # older than the ring's span
            if held == slot:
                if t_ns < latest_ns - self._late_ns:
                    continue
                newest_ns[at] = crowded.join(slot, newest_ns.item(at), means[at], t_ns, row)
            else:
                if crowded:
                    crowded.pop(held, None)
                    crowded.settle((latest_ns - self._late_ns) // self.slot_ns)
                slots[at] = slot
                # Not a copy: adding to 0 turns negative zero into zero.
                np.add(row, self._zeros, means[at])
                newest_ns[at] = t_ns
            if slot <= looked:
                looked = self._looked[place] = NEVER
            if t_ns > latest_ns:
                latest_ns = self._latest_ns[place] = t_ns
            if at + self.capacity < self.width:
                slots[at + self.capacity] = slot
                means[at + self.capacity] = means[at]
                if written is not None:
                    written.append(first + at + self.capacity)
            if written is not None:
                written.append(first + at)

    def look(self, places: Int64, t_end_ns: Int64) -> tuple[Int64, Bool]:
        """Ends (B,) of the windows visible at `t_end_ns` (B,), and which have changed since the last look."""
        self._place_waiting()
        ends = t_end_ns if not self._hop_ns else t_end_ns // self._hop_ns * self._hop_ns - 1
        last = ends // self.slot_ns
        # A slot whose newest row lies beyond the end is partly visible, and may be complete next time.
        partial = self._is_partial(places, last, ends)
        changed = (self._looked[places] != last) | partial
        self._looked[places] = np.where(partial, NEVER, last)
        return ends, changed

    def find(self, places: Int64, ends_ns: Int64) -> tuple[Int64, Float32, dict[int, Float32]]:
        """Locate windows.

        Returns:
            flat indices of slots (B, steps), mask (B, steps), and the last slot's values for those windows that end
            before its newest row.
        """
        last = ends_ns // self.slot_ns
        slots = last[:, None] + self._back
        flat = (slots & (self.capacity - 1)) + (places * self.width)[:, None]
        mask = self._slots.reshape(-1)[flat] == slots
        partial: dict[int, Float32] = {}
        for index in np.flatnonzero(self._is_partial(places, last, ends_ns)).tolist():
            mean = self._mean_until(int(places[index]), int(ends_ns[index]))
            if mean is None:
                mask[index, -1] = False
            else:
                partial[index] = mean
        return flat, mask.astype(np.float32), partial

    def gather(self, places: Int64, ends_ns: Int64, out: Float32 | None = None) -> tuple[Float32, Float32]:
        """The windows of `places` (B,) up to `ends_ns` (B,): features (B, steps, dim) and mask (B, steps).

        The result is `out`, or a view of the ring, or fresh arrays: read it before the next write.
        """
        self._place_waiting()
        if len(places) == 1 and (window := self._view(int(places[0]), int(ends_ns[0]))) is not None:
            return window[None], np.ones((1, self.spec.steps), np.float32)
        flat, mask, partial = self.find(places, ends_ns)
        shape = (len(places), self.spec.steps, self.spec.dim)
        features = np.empty(shape, np.float32) if out is None else out[: len(places)]
        rows = self.means.reshape(-1, self.spec.dim)
        np.take(rows, flat.reshape(-1), 0, features.reshape(-1, self.spec.dim), mode="wrap")
        features[mask == 0] = 0.0
        for index, mean in partial.items():
            features[index, -1] = mean
        return features, mask

    def newest_ns(self, places: Int64, t_end_ns: Int64) -> Int64:
        """Time of the newest row up to `t_end_ns` (B,) within the window, NEVER if there is none."""
        self._place_waiting()
        newest = self._latest_ns[places]
        for index in np.flatnonzero(newest > t_end_ns).tolist():
            newest[index] = self._newest_until(int(places[index]), int(t_end_ns[index]))
        newest[newest <= t_end_ns - WINDOW_NS] = NEVER
        return newest

    def look_at_one(self, place: int, t_end_ns: int) -> tuple[int, bool, int]:
        """`look` and `newest_ns` of one session, where numpy's call overhead dominates."""
        self._place_waiting()
        end_ns = t_end_ns if not self._hop_ns else t_end_ns // self._hop_ns * self._hop_ns - 1
        last = end_ns // self.slot_ns
        at = last & (self.capacity - 1)
        partial = bool(self._newest_ns[place, at] > end_ns and self._slots[place, at] == last)
        changed = partial or bool(self._looked[place] != last)
        if changed:
            self._looked[place] = NEVER if partial else last
        newest_ns = int(self._latest_ns[place])
        if newest_ns > t_end_ns:
            newest_ns = self._newest_until(place, t_end_ns)
        return end_ns, changed, newest_ns if newest_ns > t_end_ns - WINDOW_NS else NEVER

    def _view(self, place: int, end_ns: int) -> Float32 | None:
        """A view of a window, (steps, dim); None if it has gaps."""
        last = end_ns // self.slot_ns
        begin = (last - self.spec.steps + 1) & (self.capacity - 1)
        end = begin + self.spec.steps
        if self._newest_ns[place, last & (self.capacity - 1)] > end_ns:
            return None
        if not (self._slots[place, begin:end] == last + self._back).all():
            return None
        window: Float32 = self.means[place, begin:end]
        return window

    def _is_partial(self, places: Int64, last: Int64, ends_ns: Int64) -> Bool:
        at = last & (self.capacity - 1)
        partial: Bool = (self._slots[places, at] == last) & (self._newest_ns[places, at] > ends_ns)
        return partial

    def _rows_of(self, place: int, slot: int) -> list[tuple[int, int, Float32]]:
        at = slot & (self.capacity - 1)
        if self._slots[place, at] != slot:
            return []
        single = [(int(self._newest_ns[place, at]), 0, self.means[place, at])]
        crowd = self._crowded[place].get(slot)
        return crowd.rows if crowd is not None else single

    def _mean_until(self, place: int, end_ns: int) -> Float32 | None:
        """Mean of the rows in the end's slot, up to the end."""
        rows = [row for t_ns, _, row in self._rows_of(place, end_ns // self.slot_ns) if t_ns <= end_ns]
        return _sum(rows) / np.float32(len(rows)) if rows else None

    def _newest_until(self, place: int, end_ns: int) -> int:
        slot = end_ns // self.slot_ns
        for back in range(WINDOW_NS // self.slot_ns + 2):
            times = [t_ns for t_ns, _, _ in self._rows_of(place, slot - back) if t_ns <= end_ns]
            if times:
                return times[-1]
        return NEVER


class _Crowd(NamedTuple):
    """Several rows of a slot in order, and their sum, if it is known."""

    rows: list[_Row]
    total: Float32 | None


class _Crowds(dict[int, _Crowd]):
    """A session's slots with several rows: for late rows, and for rows that are not yet visible."""

    def append(self, slot: int, newest_ns: int, mean: Float32, t_ns: int, row: Float32) -> _Crowd:
        """Keep a row that is newer than all in its slot; `newest_ns` and `mean` are the slot's until now."""
        crowd = self.get(slot)
        if crowd is None:
            crowd = self[slot] = _Crowd([(newest_ns, 0, mean.copy())], None)
        crowd.rows.append((t_ns, len(crowd.rows), row))
        return crowd

    def join(self, slot: int, newest_ns: int, mean: Float32, t_ns: int, row: Float32) -> int:
        """Add a row of any time to a slot, and to its `mean`. Returns the time of the newest."""
        crowd = self.append(slot, newest_ns, mean, t_ns, row)
        rows, total = crowd
        if t_ns >= newest_ns and total is not None:
            np.add(total, row, total)
        else:
            if t_ns < newest_ns:
                insort(rows, rows.pop())
            total = _sum(values for _, _, values in rows)
            self[slot] = _Crowd(rows, total)
        np.divide(total, np.float32(len(rows)), mean)
        return rows[-1][0]

    def settle(self, before: int) -> None:
        """Keep only the means of slots before this one: no row joins them any more."""
        while self and (slot := next(iter(self))) < before:
            del self[slot]


def _lists(*arrays: Int64 | Bool) -> Iterator[tuple[int, ...]]:
    """The numbers of arrays (n,) side by side."""
    return zip(*(array.tolist() for array in arrays), strict=True)


def _sum(rows: Iterable[Float32]) -> Float32:
    """Sum in the order of `mien.windowing.average_slots`."""
    total = np.zeros(1, np.float32)
    for row in rows:
        total = total + row
    return total
