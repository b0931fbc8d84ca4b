"""From messages to windows. Pure: no socket, no thread, no clock of its own.

Feed it `FeatureWindow`s in any order that a network may deliver them, and ask for the `Window` that ends at an instant.
The same messages give the same window, whatever came between. Whatever is refused is counted by cause.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import FeatureWindow, Float32, ModalitySpec, Window, Word
from mien.stream.sources.pace import Pace
from mien.windowing import place_rows, slot_ns

_FUTURE_NS = 2 * NS_PER_S  # rows from further ahead than this are a broken clock, not evidence
_MOST_AGE_NS = 3 * NS_PER_S  # for which a row of the slowest camera counts
_STEP_BACK_NS = 1 * NS_PER_S  # a watermark that falls by more is a clock step, not jitter
_SPARE_NS = 1 * NS_PER_S  # rows kept beyond the window, for windows that end a little earlier
_CAPACITY = 4096
_NEWS_NS = 1 * NS_PER_S  # newer by more than this is news, not a repetition
_MAX_GAP = 1 << 24  # messages lost at once: days
_ENCODE_HOP_NS = 100 * NS_PER_MS  # dense modalities advance in these steps: their encoding is reused in between


class Assembler:
    """Rolling windows over any number of modalities.

    Args:
        specs: the modalities that the model knows, by name.
        max_age_ms: a modality of instants whose newest message is older is masked as a whole; one that speaks less
            often has more time.
        window_s: length of the window; for words, how long they stay in it.

    Attributes:
        drops: what was refused or lost, by cause. last_refusal: the newest cause in words.
        explanations: per modality, what its silence means; becomes the reason of its absence.
        faults: per modality that is to be masked whatever has arrived, why.
    """

    def __init__(self, specs: Mapping[str, ModalitySpec], max_age_ms: int = 500, window_s: float = 5.0) -> None:
        self.specs = dict(specs)
        self.drops: Counter[str] = Counter()
        self.last_refusal: str | None = None
        self.explanations: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self._max_age_ns = max_age_ms * NS_PER_MS
        self._window_ns = int(window_s * NS_PER_S)
        self._tracks = {
            name: _Snapshots(spec, self._window_ns) if spec.snapshot else _Rows(spec, self._window_ns)
            for name, spec in self.specs.items()
        }
        self._paces = {name: Pace() for name in self.specs}
        self._seq = 0

    def push(self, message: FeatureWindow, now_ns: int | None = None) -> bool:
        """Take a message in.

        Args:
            message: decoded, hence well-formed.
            now_ns: session time at arrival; None where time is the clip's own.

        Returns:
            Whether it was accepted. If not, `drops` counts the cause and `last_refusal` says it.
        """
        spec = self.specs.get(message.modality)
        if spec is None:
            return self._refuse("unknown_modality", f"the model has no modality {message.modality!r}")
        if message.values.shape[1] != spec.dim:
            return self._refuse(
                "shape", f"{message.modality} rows have {message.values.shape[1]} numbers, not {spec.dim}"
            )
        if spec.extractor and message.extractor != spec.extractor:
            return self._refuse(
                "extractor", f"{message.modality} comes from {message.extractor!r}, the model needs {spec.extractor!r}"
            )
        if now_ns is not None and message.t_end_ns > now_ns + _FUTURE_NS:
            return self._refuse(
                "future", f"{message.modality} is {(message.t_end_ns - now_ns) / 1e9:.1f} s ahead of now"
            )
        cause = self._tracks[message.modality].push(message, self.drops)
        if cause:
            return self._refuse(cause, f"{message.modality} message {message.seq}: {cause}")
        self._paces[message.modality].hear(message.t_end_ns)
        return True

    def watermark_ns(self, modality: str) -> int | None:
        """Up to when a modality has spoken; None if it never has."""
        return self._tracks[modality].watermark_ns

    def window(self, session: str, t_end_ns: int) -> Window:
        """The window that ends at `t_end_ns`, made of what has arrived."""
        features: dict[str, Float32] = {}
        mask: dict[str, Float32] = {}
        age_ms: dict[str, float | None] = {}
        absent: dict[str, str] = {}
        version: dict[str, int] = {}
        words: tuple[Word, ...] = ()
        for name, spec in self.specs.items():
            track = self._tracks[name]
            silence = self._absence(spec, track, t_end_ns)
            reason = self.faults.get(name) or (self.explanations.get(name, silence) if silence else None)
            if reason:
                absent[name] = reason
                features[name], mask[name], version[name] = track.nothing, track.no_mask, -1
                age_ms[name] = None
                continue
            features[name], mask[name], version[name] = track.view(t_end_ns)
            newest_ns = track.newest_valid_ns(t_end_ns)
            age_ms[name] = None if newest_ns is None else (t_end_ns - newest_ns) / NS_PER_MS
            if isinstance(track, _Snapshots):
                words = track.words(t_end_ns)
                if not mask[name].any() and (reason := track.reason(t_end_ns)):
                    absent[name] = reason
        self._seq += 1
        return Window(
            session=session,
            seq=self._seq - 1,
            t_end_ns=t_end_ns,
            features=features,
            mask=mask,
            age_ms=age_ms,
            absent=absent,
            version=version,
            words=words,
        )

    def _absence(self, spec: ModalitySpec, track: _Rows | _Snapshots, t_end_ns: int) -> str | None:
        if track.watermark_ns is None:
            return "nothing received"
        # Words lag by nature and leave the window by themselves; only their worker's silence counts.
        pace = self._paces[spec.name]
        limit_ns = self._window_ns if spec.snapshot else pace.patience(self._max_age_ns, _MOST_AGE_NS)
        silent_ns = t_end_ns - track.watermark_ns
        return f"nothing received for {silent_ns / NS_PER_S:.1f} s" if silent_ns > limit_ns else None

    def _refuse(self, cause: str, explanation: str) -> bool:
        self.drops[cause] += 1
        self.last_refusal = explanation
        return False


class _Order:
    """Sequence numbers of one publisher: what is new, late, twice, lost, or from a run that is over."""

    def __init__(self) -> None:
        self.run: int | None = None
        self.in_order = True
        self._ended_runs: deque[int] = deque(maxlen=16)
        self._next = 0
        self._missing: deque[int] = deque(maxlen=256)

    def judge(self, message: FeatureWindow, drops: Counter[str], watermark_ns: int | None) -> str | None:
        """A cause to refuse the message, or None. Counts what was lost before it.

        What is newer by far than all that has come can be no duplicate and not left over from before, whatever its
        numbers say: one message with absurd numbers must not make all that follow it look old.
        """
        is_news = watermark_ns is not None and message.t_end_ns > watermark_ns + _NEWS_NS
        if message.run != self.run:
            if message.run in self._ended_runs:
                if not is_news:
                    return "stale_run"
                self._ended_runs.remove(message.run)
            if self.run is not None:
                self._ended_runs.append(self.run)
            self.run, self._next = message.run, message.seq
            self._missing.clear()
        if message.seq >= self._next:
            gap = message.seq - self._next
            if gap > _MAX_GAP and not is_news:
                return "absurd_seq"
            if gap > _MAX_GAP:
                drops["renumbered"] += 1
            else:
                drops["lost"] += gap
            self._missing.extend(range(max(self._next, message.seq - 256), message.seq))
            self._next = message.seq + 1
            self.in_order = True
            return None
        self.in_order = False
        if message.seq in self._missing:
            self._missing.remove(message.seq)
            drops["lost"] -= 1
            return None
        if not is_news:
            return "duplicate"
        drops["renumbered"] += 1
        self._next = message.seq + 1
        self._missing.clear()
        self.in_order = True
        return None


class _Rows:
    """Rows of instants (frames, hops) in time order, in one preallocated buffer."""

    def __init__(self, spec: ModalitySpec, window_ns: int) -> None:
        self.spec = spec
        self.watermark_ns: int | None = None
        self.nothing = np.zeros((spec.steps, spec.dim), np.float32)
        self.no_mask = np.zeros(spec.steps, np.float32)
        self._window_ns = window_ns
        self._order = _Order()
        self._values = np.zeros((_CAPACITY, spec.dim), np.float32)
        self._valid = np.zeros(_CAPACITY, bool)
        self._times_ns = np.zeros(_CAPACITY, np.int64)
        self._n = 0
        self._forgotten = 0
        self._cached: tuple[tuple[int, int], Float32, Float32] | None = None
        self._version = 0

    def push(self, message: FeatureWindow, drops: Counter[str]) -> str | None:
        cause = self._order.judge(message, drops, self.watermark_ns)
        if cause:
            return cause
        if self.watermark_ns is not None and message.t_end_ns < self.watermark_ns - _STEP_BACK_NS:
            if not self._order.in_order:
                return "too_late"
            # The clock went back: the rows from before would hide everything after it.
            drops["clock_step"] += 1
            self._clear()
        if len(message.values) and self._n and message.times_ns[0] < self._times_ns[self._n - 1]:
            drops["late"] += 1
        self._insert(message)
        self.watermark_ns = max(self.watermark_ns or 0, message.t_end_ns)
        return None

    def view(self, t_end_ns: int) -> tuple[Float32, Float32, int]:
        """Features, mask and their version, for the window that ends at `t_end_ns`."""
        hop_ns = max(_ENCODE_HOP_NS, slot_ns(self.spec))
        # Sparse rows (video) are looked at up to the instant, dense ones up to the last whole hop.
        end_ns = t_end_ns if slot_ns(self.spec) >= hop_ns else t_end_ns // hop_ns * hop_ns - 1
        stop = int(np.searchsorted(self._times_ns[: self._n], end_ns, side="right"))
        # Rows are never changed, only added or forgotten, so this names what is in the window.
        key = (end_ns // slot_ns(self.spec), self._forgotten + stop)
        if self._cached is None or self._cached[0] != key:
            features, mask = place_rows(
                self.spec, self._values[:stop], self._valid[:stop], self._times_ns[:stop], end_ns
            )
            self._cached = (key, features, mask)
            self._version += 1
        return self._cached[1], self._cached[2], self._version

    def newest_valid_ns(self, t_end_ns: int) -> int | None:
        stop = int(np.searchsorted(self._times_ns[: self._n], t_end_ns, side="right"))
        valid = np.flatnonzero(self._valid[:stop])
        if not len(valid):
            return None
        newest_ns = int(self._times_ns[valid[-1]])
        return newest_ns if newest_ns > t_end_ns - self._window_ns else None

    def _insert(self, message: FeatureWindow) -> None:
        count = min(len(message.values), _CAPACITY // 2)
        if not count:
            return
        if self._n + count > _CAPACITY:
            self._forget(count)
        times_ns = message.times_ns[-count:]
        at = int(np.searchsorted(self._times_ns[: self._n], times_ns[0], side="right"))
        for buffer, rows in (
            (self._values, message.values[-count:]),
            (self._valid, message.valid[-count:]),
            (self._times_ns, times_ns),
        ):
            buffer[at + count : self._n + count] = buffer[at : self._n].copy()
            buffer[at : at + count] = rows
        self._n += count
        newest_first = self._times_ns[: self._n]
        if np.any(np.diff(newest_first[max(at - 1, 0) : at + count + 1]) < 0):
            order = np.argsort(newest_first, kind="stable")
            for buffer in (self._values, self._valid, self._times_ns):
                buffer[: self._n] = buffer[: self._n][order]
        if at + count < self._n:
            self._cached = None  # a late row may stand before what was looked at already

    def _forget(self, room: int) -> None:
        newest_ns = int(self._times_ns[self._n - 1])
        keep_from = int(
            np.searchsorted(self._times_ns[: self._n], newest_ns - self._window_ns - _SPARE_NS, side="left")
        )
        # In a clip that plays faster than it is predicted, all rows may still be wanted: then drop only what must go.
        keep_from = max(keep_from, self._n + room - _CAPACITY)
        kept = self._n - keep_from
        for buffer in (self._values, self._valid, self._times_ns):
            buffer[:kept] = buffer[keep_from : self._n].copy()
        self._n = kept
        self._forgotten += keep_from

    def _clear(self) -> None:
        self._forgotten += self._n
        self._n = 0
        self.watermark_ns = None
        self._cached = None


class _Snapshots:
    """Whole windows of words; a newer one replaces the one before it."""

    def __init__(self, spec: ModalitySpec, window_ns: int) -> None:
        self.spec = spec
        self.watermark_ns: int | None = None
        self.nothing = np.zeros((spec.steps, spec.dim), np.float32)
        self.no_mask = np.zeros(spec.steps, np.float32)
        self._window_ns = window_ns
        self._order = _Order()
        self._kept: deque[FeatureWindow] = deque(maxlen=64)
        self._cached: tuple[tuple[int, ...], Float32, Float32] | None = None
        self._version = 0

    def push(self, message: FeatureWindow, drops: Counter[str]) -> str | None:
        cause = self._order.judge(message, drops, self.watermark_ns)
        if cause:
            return cause
        if self.watermark_ns is not None and message.t_end_ns < self.watermark_ns:
            if not self._order.in_order or message.t_end_ns > self.watermark_ns - _STEP_BACK_NS:
                return "too_late"
            drops["clock_step"] += 1
            self._kept.clear()
            self._cached = None
        self._kept.append(message)
        self.watermark_ns = message.t_end_ns
        return None

    def view(self, t_end_ns: int) -> tuple[Float32, Float32, int]:
        snapshot = self._at(t_end_ns)
        if snapshot is None:
            key: tuple[int, ...] = ()
            inside = np.zeros(0, bool)
        else:
            inside = snapshot.valid & (snapshot.times_ns > t_end_ns - self._window_ns)
            key = (snapshot.run, snapshot.seq, int(inside.sum()))
        if self._cached is None or self._cached[0] != key:
            features, mask = self.nothing, self.no_mask
            if snapshot is not None:
                features, mask = place_rows(self.spec, snapshot.values, inside, snapshot.times_ns, t_end_ns)
            same = (
                self._cached is not None
                and np.array_equal(self._cached[1], features)
                and np.array_equal(self._cached[2], mask)
            )
            self._version += not same
            self._cached = (key, features, mask)
        return self._cached[1], self._cached[2], self._version

    def newest_valid_ns(self, t_end_ns: int) -> int | None:
        snapshot = self._at(t_end_ns)
        if snapshot is None:
            return None
        inside = snapshot.valid & (snapshot.times_ns > t_end_ns - self._window_ns) & (snapshot.times_ns <= t_end_ns)
        return int(snapshot.times_ns[inside].max()) if inside.any() else None

    def words(self, t_end_ns: int) -> tuple[Word, ...]:
        """The words of the window."""
        snapshot = self._at(t_end_ns)
        if snapshot is None:
            return ()
        return tuple(word for word in snapshot.words if word.t_end_ns > t_end_ns - self._window_ns)

    def reason(self, t_end_ns: int) -> str:
        """Why no word of the window counts, where its worker says so."""
        snapshot = self._at(t_end_ns)
        return snapshot.reason if snapshot is not None else ""

    def _at(self, t_end_ns: int) -> FeatureWindow | None:
        for snapshot in reversed(self._kept):
            if snapshot.t_end_ns <= t_end_ns:
                return snapshot
        return None
