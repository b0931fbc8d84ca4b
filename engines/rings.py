"""The windows of all sessions of a process.

Whether a window has changed is known from the writes since the last look, without comparing arrays. Rows with times are
kept in `mien.engines.ring`, words in `mien.engines.snapshots`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mien.engines.ring import FOREVER_NS, Ring
from mien.engines.snapshots import NEVER, SPAN_NS, Snapshots
from mien.messages import Bool, Int64, ModalitySpec


class Look(NamedTuple):
    """Windows of several sessions, each at an instant.

    Attributes:
        places: (B,) which sessions. ends_ns: per modality (B,), where its window ends.
        present: (B, M) whether a modality is present at all. changed: (B, M) whether it is, and its window differs
            from the one last looked at while present.
        newest_ns: (B, M) time of the newest row, NEVER where there is none.
    """

    places: Int64
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
        place = self._free.popleft()
        for track in self.tracks.values():
            if isinstance(track, Ring):
                track.reserve(place)
        return place

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
            ends_ns[name], is_new = track.look(at, ends)
            changed[:, column] |= is_new
            newest_ns[:, column] = track.newest_ns(at, ends)
        self._pending[at] = changed & ~present
        changed &= present
        return Look(at, ends_ns, present, changed, newest_ns)

    def look_ahead(self, place: int, t_end_ns: int, updated: Collection[str]) -> dict[str, int]:
        """Ends of a session's windows that have changed since they were last looked at.

        For an instant still to come: considers the modalities in `updated`, and words, which change with time alone. If
        the look at that instant finds the same window, it counts as unchanged.
        """
        ends_ns: dict[str, int] = {}
        until_ns, pending = self.until_ns[place].tolist(), self._pending[place]
        for column, (name, track) in enumerate(self.tracks.items()):
            if t_end_ns <= until_ns[column] and (name in updated or isinstance(track, Snapshots)):
                end_ns, is_new, _ = track.look_at_one(place, t_end_ns)
                if is_new or pending[column]:
                    pending[column] = False
                    ends_ns[name] = end_ns
        return ends_ns

    def _look_at_one(self, place: int, t_end_ns: int) -> Look:
        seen = [track.look_at_one(place, t_end_ns) for track in self.tracks.values()]
        present = [t_end_ns <= until_ns for until_ns in self.until_ns[place].tolist()]
        changed = [is_new or old for (_, is_new, _), old in zip(seen, self._pending[place].tolist(), strict=True)]
        self._pending[place] = [is_new and not there for is_new, there in zip(changed, present, strict=True)]
        return Look(
            np.array([place]),
            {name: np.array([end_ns]) for name, (end_ns, _, _) in zip(self.tracks, seen, strict=True)},
            np.array([present]),
            np.array([[is_new and there for is_new, there in zip(changed, present, strict=True)]]),
            np.array([[newest_ns for _, _, newest_ns in seen]]),
        )
