"""Assembles windows from messages. Pure: no socket, no thread, no clock.

Push `FeatureWindow`s in any order in which a network may deliver them, and read the window ending at an instant from
`Windows`. The same messages give the same window, whatever came between. Rejected messages are counted by cause.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

from mien.clock import NS_PER_MS, NS_PER_S
from mien.engines.rings import Windows
from mien.engines.snapshots import NEVER, Snapshots
from mien.messages import FeatureWindow, ModalitySpec
from mien.stream.sources.pace import Pace
from mien.windowing import WINDOW_NS

_FUTURE_NS = 2 * NS_PER_S  # rows further ahead than this indicate a broken clock
_MOST_AGE_NS = 3 * NS_PER_S  # how long a row of the slowest camera counts
_STEP_BACK_NS = 1 * NS_PER_S  # a watermark falling by more is a clock step, not jitter
_NEWS_NS = 1 * NS_PER_S  # anything newer by more than this is not a duplicate
_MAX_GAP = 1 << 24  # messages lost at once: several days' worth


class Assembler:
    """Rolling windows of one session, over any number of modalities.

    Args:
        specs: the modalities that the model knows, by name.
        max_age_ms: a modality of instants whose newest message is older is masked as a whole; slower ones get more
            time.
        windows: the rows of all sessions of the process; by default room for this one only.

    Attributes:
        drops: rejected and lost messages, by cause. last_refusal: the newest cause in words.
        explanations: per modality, what its silence means; becomes the reason for its absence.
        place: of the session in `windows`. paces: at which each modality's messages follow each other.
    """

    def __init__(
        self, specs: Mapping[str, ModalitySpec], max_age_ms: int = 500, windows: Windows | None = None
    ) -> None:
        self.specs = dict(specs)
        self.drops: Counter[str] = Counter()
        self.last_refusal: str | None = None
        self.explanations: dict[str, str] = {}
        self._unfit: dict[str, str] = {}  # why the newest message of a modality was rejected
        self.windows = windows or Windows(specs)
        self.place = self.windows.take_place()
        self._max_age_ns = max_age_ms * NS_PER_MS
        self.paces = {name: Pace() for name in self.specs}
        self._faults: dict[str, str] = {}
        self._orders = {name: _Order() for name in self.specs}
        self._watermarks_ns: dict[str, int] = {}
        self._newest_ns: dict[str, int] = {}

    @property
    def faults(self) -> dict[str, str]:
        """Modalities to mask regardless of what has arrived, with the reason."""
        return self._faults

    @faults.setter
    def faults(self, faults: Mapping[str, str]) -> None:
        self._faults = {name: reason for name, reason in faults.items() if name in self.specs}
        for name in self.specs:
            self._set_until(name)

    def reset(self) -> None:
        """Reset to the state at the start of a session."""
        for name in self.specs:
            self._forget(name)
            self._orders[name] = _Order()
        self.faults = {}

    def push(self, message: FeatureWindow, now_ns: int | None = None) -> bool:
        """Add a message.

        Args:
            message: decoded, hence well-formed.
            now_ns: session time at arrival; None if time is the clip's own.

        Returns:
            Whether it was accepted. If not, the cause is counted in `drops` and explained in `last_refusal`.
        """
        name = message.modality
        spec = self.specs.get(name)
        if spec is None:
            return self.refuse("unknown_modality", f"the model has no modality {name!r}")
        if message.values.shape[1] != spec.dim:
            return self.refuse("shape", f"{name} rows have {message.values.shape[1]} numbers, not {spec.dim}", name)
        if spec.extractor and message.extractor != spec.extractor:
            unfit = f"{name} comes from {message.extractor!r}, the model needs {spec.extractor!r}"
            return self.refuse("extractor", unfit, name)
        if now_ns is not None and message.t_end_ns > now_ns + _FUTURE_NS:
            return self.refuse("future", f"{name} is {(message.t_end_ns - now_ns) / 1e9:.1f} s in the future", name)
        cause = self._judge(name, message)
        if cause:
            return self.refuse(cause, f"{name} message {message.seq}: {cause}")
        self._unfit.pop(name, None)
        track = self.windows.tracks[name]
        if isinstance(track, Snapshots):
            track.write(self.place, message)
        elif times_ns := message.times_ns.tolist():
            newest_ns = self._newest_ns.get(name, NEVER)
            if times_ns[0] < newest_ns:
                self.drops["late"] += 1
            self._newest_ns[name] = max(newest_ns, *times_ns)
            track.write(self.place, message.values, message.valid, message.times_ns)
        self.paces[name].add(message.t_end_ns)
        if message.t_end_ns > self._watermarks_ns.get(name, NEVER):
            self._watermarks_ns[name] = message.t_end_ns
        self._set_until(name)
        return True

    def refuse(self, cause: str, explanation: str, unfit: str = "") -> bool:
        """Count a rejected message, also one that did not get as far as here.

        Args:
            unfit: the modality, if all of its messages will be like this.

        Returns:
            False, as `push` then does.
        """
        self.drops[cause] += 1
        if unfit:
            self._unfit[unfit] = explanation
        self.last_refusal = explanation
        return False

    def watermark_ns(self, modality: str) -> int | None:
        """A modality's watermark; None if it has sent nothing."""
        return self._watermarks_ns.get(modality)

    def absent(self, t_end_ns: int) -> dict[str, str]:
        """Why modalities are masked as a whole at an instant, which must be the last one read."""
        absent = {}
        for name in self.specs:
            watermark_ns, silence = self._watermarks_ns.get(name), None
            if watermark_ns is None:
                silence = "nothing received"
            elif t_end_ns - watermark_ns > self._patience_ns(name):
                silence = f"nothing received for {(t_end_ns - watermark_ns) / NS_PER_S:.1f} s"
            track = self.windows.tracks[name]
            said = track.reasons[self.place] if isinstance(track, Snapshots) else None
            silence = self._unfit.get(name, silence) if silence else None
            reason = self._faults.get(name) or (self.explanations.get(name, silence) if silence else said)
            if reason:
                absent[name] = reason
        return absent

    def _judge(self, name: str, message: FeatureWindow) -> str | None:
        """A cause to reject a message, or None."""
        watermark_ns, order = self._watermarks_ns.get(name), self._orders[name]
        cause = order.judge(message, self.drops, watermark_ns)
        if cause or watermark_ns is None or message.t_end_ns >= watermark_ns:
            return cause
        stepped = message.t_end_ns < watermark_ns - _STEP_BACK_NS
        if stepped and order.in_order:
            # The clock was set back: earlier rows would hide all later ones.
            self.drops["clock_step"] += 1
            self._forget(name)
            return None
        return "too_late" if stepped or self.specs[name].snapshot else None

    def _forget(self, name: str) -> None:
        self.windows.tracks[name].clear(self.place)
        self._watermarks_ns.pop(name, None)
        self._newest_ns.pop(name, None)
        self._set_until(name)

    def _set_until(self, name: str) -> None:
        """Update until when the modality counts as present."""
        there = name in self._watermarks_ns and name not in self._faults
        until_ns = self._watermarks_ns[name] + self._patience_ns(name) if there else NEVER
        self.windows.until_ns[self.place, self.windows.column[name]] = until_ns

    def _patience_ns(self, name: str) -> int:
        """Timeout of a modality's messages."""
        if self.specs[name].snapshot:
            # Words inherently lag and leave the window on their own; only their worker's silence counts.
            return WINDOW_NS
        return int(self.paces[name].patience(self._max_age_ns, _MOST_AGE_NS))


def ages_ms(
    names: Iterable[str], t_end_ns: int, present: Sequence[bool], newest_ns: Sequence[int]
) -> dict[str, float | None]:
    """Age of each modality's newest row at an instant; None if it has none, or is masked as a whole."""
    return {
        name: (t_end_ns - newest) / NS_PER_MS if there and newest != NEVER else None
        for name, there, newest in zip(names, present, newest_ns, strict=True)
    }


class _Order:
    """Sequence numbers of one publisher: detects late, duplicate and lost messages, and those of an earlier run."""

    def __init__(self) -> None:
        self.run: int | None = None
        self.in_order = True
        self._ended_runs: deque[int] = deque(maxlen=16)
        self._next = 0
        self._missing: deque[int] = deque(maxlen=256)

    def judge(self, message: FeatureWindow, drops: Counter[str], watermark_ns: int | None) -> str | None:
        """A cause to reject the message, or None. Counts messages lost before it.

        A message far newer than all before it can be neither duplicate nor left over, whatever its numbers: one
        message with absurd numbers must not make all later ones look old.
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
