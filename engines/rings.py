"""The windows of all sessions of a process: each row is written once, and a batch of windows is one gather.

A row never changes its slot, so a timestamped modality is a ring over slots, all sessions in one array: a new row
changes one slot, and a window is a slice of the ring. Whether a window has changed is known from the writes since the
last look, without comparing arrays. Windows are bit-equal to those of `mien.windowing.place_rows` for the same rows in
time order. Words are kept in `mien.engines.snapshots`.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mien.clock import NS_PER_MS
from mien.engines.snapshots import NEVER, SPAN_NS, Snapshots
from mien.messages import Bool, Float32, Int64, ModalitySpec
from mien.windowing import WINDOW_NS, slot_ns

FOREVER_NS = 1 << 62
_HOP_NS = 100 * NS_PER_MS  # dense modalities advance in these steps: their encoding is reused in between


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
    """

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
        # Slots of several rows: their times and rows in order, for late rows and rows not yet visible.
        self._crowded: list[dict[int, _Crowd]] = [{} for _ in range(places)]
        self._zeros = np.zeros(spec.dim, np.float32)
        self._back = np.arange(1 - spec.steps, 1)
        # Sparse rows (video) are visible up to the instant, dense ones up to the last whole hop.
        self._hop_ns = 0 if self.slot_ns >= _HOP_NS else _HOP_NS

    def clear(self, place: int) -> None:
        """Drop a session's rows."""
        self._slots[place] = self._newest_ns[place] = NEVER
        self._latest_ns[place] = self._looked[place] = NEVER
        self._crowded[place].clear()

    def write(self, place: int, values: Float32, valid: Bool, times_ns: Int64) -> None:
        """Rows of a session, in any order: (n, dim), (n,), (n,)."""
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
                newest_ns[at] = self._join(crowded, slot, newest_ns.item(at), means[at], t_ns, row)
            else:
                if crowded:
                    crowded.pop(held, None)
                    self._settle(crowded, (latest_ns - self._late_ns) // self.slot_ns)
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
        newest = self._latest_ns[places]
        for index in np.flatnonzero(newest > t_end_ns).tolist():
            newest[index] = self._newest_until(int(places[index]), int(t_end_ns[index]))
        newest[newest <= t_end_ns - WINDOW_NS] = NEVER
        return newest

    def look_at_one(self, place: int, t_end_ns: int) -> tuple[int, bool, int]:
        """`look` and `newest_ns` of one session, where numpy's call overhead dominates."""
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

    def _join(
        self, crowded: dict[int, _Crowd], slot: int, newest_ns: int, mean: Float32, t_ns: int, row: Float32
    ) -> int:
        """Add a row to a slot with others, whose mean is `mean`. Returns the time of the newest."""
        crowd = crowded.get(slot)
        if crowd is None:
            crowd = crowded[slot] = _Crowd([(newest_ns, 0, mean.copy())], mean.copy())
        rows, total = crowd
        if t_ns >= newest_ns:
            rows.append((t_ns, len(rows), row))
            np.add(total, row, total)
        else:
            insort(rows, (t_ns, len(rows), row))
            total[:] = _total(row for _, _, row in rows)
        np.divide(total, np.float32(len(rows)), mean)
        return rows[-1][0]

    def _settle(self, crowded: dict[int, _Crowd], before: int) -> None:
        """Keep only the means of slots before this one: no row joins them any more."""
        while crowded and (slot := next(iter(crowded))) < before:
            del crowded[slot]

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
        return _total(rows) / np.float32(len(rows)) if rows else None

    def _newest_until(self, place: int, end_ns: int) -> int:
        slot = end_ns // self.slot_ns
        for back in range(WINDOW_NS // self.slot_ns + 2):
            times = [t_ns for t_ns, _, _ in self._rows_of(place, slot - back) if t_ns <= end_ns]
            if times:
                return times[-1]
        return NEVER


class Look(NamedTuple):
    """Windows of several sessions, each at an instant.

    Attributes:
        places: (B,) which sessions. t_end_ns: (B,) the instants.
        ends_ns: per modality (B,), where its window ends.
        present: (B, M) whether a modality is present at all. changed: (B, M) whether it is, and its window differs
            from the one last looked at while present.
        newest_ns: (B, M) time of the newest row, NEVER where there is none.
    """

    places: Int64
    t_end_ns: Int64
    ends_ns: dict[str, Int64]
    present: Bool
    changed: Bool
    newest_ns: Int64

    def seen(self) -> Iterator[tuple[list[bool], list[int]]]:
        """Per session and modality, `present` and `newest_ns`, as Python numbers."""
        return zip(self.present.tolist(), self.newest_ns.tolist(), strict=True)


class Windows:
    """The windows of all sessions of a process, over any number of modalities.

    Args:
        specs: the modalities that the model knows, by name; their order is that of every axis M.
        places: session capacity. span_ns: how much time is kept of each. late_ns: as for `Ring`.

    Attributes:
        until_ns: (places, M), until when a modality counts as present; NEVER if it does not.
    """

    def __init__(
        self,
        specs: Mapping[str, ModalitySpec],
        places: int = 1,
        span_ns: int = SPAN_NS,
        late_ns: int = FOREVER_NS,
    ) -> None:
        self.specs = dict(specs)
        self.places = places
        self.tracks: dict[str, Ring | Snapshots] = {
            name: Snapshots(spec, places, span_ns) if spec.snapshot else Ring(spec, places, span_ns, late_ns)
            for name, spec in self.specs.items()
        }
        self.column = {name: number for number, name in enumerate(self.specs)}
        self.until_ns = np.full((places, len(self.specs)), NEVER, np.int64)
        self._pending = np.ones((places, len(self.specs)), bool)  # changed, and not seen since
        self._free: deque[int] = deque(range(places))

    def take_place(self) -> int:
        """Reserve a place for one more session.

        Raises:
            IndexError: all are taken.
        """
        return self._free.popleft()

    def give_back(self, place: int) -> None:
        """Free the place of a session that has ended, and drop its rows."""
        for track in self.tracks.values():
            track.clear(place)
        self.until_ns[place] = NEVER
        self._pending[place] = True
        self._free.append(place)

    def show_all(self) -> None:
        """Mark every window as changed for the next look: what was computed from them is lost."""
        self._pending[:] = True

    def look(self, places: Sequence[int], t_end_ns: Sequence[int]) -> Look:
        """The windows of sessions, each at an instant. `places` holds a session at most once."""
        if len(places) == 1:
            return self._look_at_one(places[0], t_end_ns[0])
        at, ends = np.array(places, np.int64), np.array(t_end_ns, np.int64)
        present = ends[:, None] <= self.until_ns[at]
        changed = self._pending[at]
        newest_ns = np.empty(present.shape, np.int64)
        ends_ns = {}
        for column, (name, track) in enumerate(self.tracks.items()):
            ends_ns[name], news = track.look(at, ends)
            changed[:, column] |= news
            newest_ns[:, column] = track.newest_ns(at, ends)
        self._pending[at] = changed & ~present
        changed &= present
        return Look(at, ends, ends_ns, present, changed, newest_ns)

    def look_ahead(self, place: int, t_end_ns: int, heard: Collection[str]) -> dict[str, int]:
        """Ends of a session's windows that have changed since they were last looked at.

        For an instant still to come: considers the modalities in `heard`, and words, which change with time alone. If
        the look at that instant finds the same window, it counts as unchanged.
        """
        ends_ns: dict[str, int] = {}
        until_ns, pending = self.until_ns[place].tolist(), self._pending[place]
        for column, (name, track) in enumerate(self.tracks.items()):
            if t_end_ns <= until_ns[column] and (name in heard or isinstance(track, Snapshots)):
                end_ns, news, _ = track.look_at_one(place, t_end_ns)
                if news or pending[column]:
                    pending[column] = False
                    ends_ns[name] = end_ns
        return ends_ns

    def _look_at_one(self, place: int, t_end_ns: int) -> Look:
        seen = [track.look_at_one(place, t_end_ns) for track in self.tracks.values()]
        present = [t_end_ns <= until_ns for until_ns in self.until_ns[place].tolist()]
        changed = [news or old for (_, news, _), old in zip(seen, self._pending[place].tolist(), strict=True)]
        self._pending[place] = [news and not there for news, there in zip(changed, present, strict=True)]
        return Look(
            np.array([place]),
            np.array([t_end_ns]),
            {name: np.array([end_ns]) for name, (end_ns, _, _) in zip(self.tracks, seen, strict=True)},
            np.array([present]),
            np.array([[news and there for news, there in zip(changed, present, strict=True)]]),
            np.array([[newest_ns for _, _, newest_ns in seen]]),
        )


class _Crowd(NamedTuple):
    """Several rows of one slot: (time, number, row) in order, and their sum."""

    rows: list[tuple[int, int, Float32]]
    total: Float32


def _total(rows: Iterable[Float32]) -> Float32:
    """Sum in the order of `mien.windowing.average_slots`."""
    total = np.zeros(1, np.float32)
    for row in rows:
        total = total + row
    return total
