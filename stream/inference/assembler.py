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
        self._until_ns = memoryview(self.windows.until_ns[self.place])  # numpy takes twice as long to set a number
        self._max_age_ns = max_age_ms * NS_PER_MS
        self._faults: dict[str, str] = {}
        self._inputs = {name: _Input(spec, self.windows) for name, spec in self.specs.items()}
        self.paces = {name: source.pace for name, source in self._inputs.items()}

    @property
    def faults(self) -> dict[str, str]:
        """Modalities to mask regardless of what has arrived, with the reason."""
        return self._faults

    @faults.setter
    def faults(self, faults: Mapping[str, str]) -> None:
        self._faults = {name: reason for name, reason in faults.items() if name in self.specs}
        for source in self._inputs.values():
            self._set_until(source)

    def reset(self) -> None:
        """Reset to the state at the start of a session."""
        for source in self._inputs.values():
            self._forget(source)
            source.order = _Order()
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
        source = self._inputs.get(name)
        if source is None:
            return self.refuse("unknown_modality", f"the model has no modality {name!r}")
        spec, t_end_ns = source.spec, message.t_end_ns
        if message.values.shape[1] != spec.dim:
            return self.refuse("shape", f"{name} rows have {message.values.shape[1]} numbers, not {spec.dim}", name)
        if spec.extractor and message.extractor != spec.extractor:
            unfit = f"{name} comes from {message.extractor!r}, the model needs {spec.extractor!r}"
            return self.refuse("extractor", unfit, name)
        if now_ns is not None and t_end_ns > now_ns + _FUTURE_NS:
            return self.refuse("future", f"{name} is {(t_end_ns - now_ns) / 1e9:.1f} s in the future", name)
        cause = self._judge(source, message)
        if cause:
            return self.refuse(cause, f"{name} message {message.seq}: {cause}")
        if self._unfit:
            self._unfit.pop(name, None)
        track = source.track
        if isinstance(track, Snapshots):
            track.write(self.place, message)
        elif times_ns := message.times_ns.tolist():
            if times_ns[0] < source.newest_ns:
                self.drops["late"] += 1
            source.newest_ns = max(source.newest_ns, max(times_ns))
            track.write(self.place, message.values, message.valid, message.times_ns)
        source.pace.add(t_end_ns)
        if source.watermark_ns is None or t_end_ns > source.watermark_ns:
            source.watermark_ns = t_end_ns
        self._set_until(source)
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
        source = self._inputs.get(modality)
        return source.watermark_ns if source is not None else None

    def absent(self, t_end_ns: int) -> dict[str, str]:
        """Why modalities are masked as a whole at an instant, which must be the last one read."""
        absent = {}
        for name, source in self._inputs.items():
            watermark_ns, silence = source.watermark_ns, None
            if watermark_ns is None:
                silence = "nothing received"
            elif t_end_ns - watermark_ns > self._patience_ns(source):
                silence = f"nothing received for {(t_end_ns - watermark_ns) / NS_PER_S:.1f} s"
            track = source.track
            said = track.reasons[self.place] if isinstance(track, Snapshots) else None
            silence = self._unfit.get(name, silence) if silence else None
            reason = self._faults.get(name) or (self.explanations.get(name, silence) if silence else said)
            if reason:
                absent[name] = reason
        return absent

    def _judge(self, source: _Input, message: FeatureWindow) -> str | None:
        """A cause to reject a message, or None."""
        watermark_ns = source.watermark_ns
        cause = source.order.judge(message, self.drops, watermark_ns)
        if cause or watermark_ns is None or message.t_end_ns >= watermark_ns:
            return cause
        stepped = message.t_end_ns < watermark_ns - _STEP_BACK_NS
        if stepped and source.order.in_order:
            # The clock was set back: earlier rows would hide all later ones.
            self.drops["clock_step"] += 1
            self._forget(source)
            return None
        return "too_late" if stepped or source.spec.snapshot else None

    def _forget(self, source: _Input) -> None:
        source.track.clear(self.place)
        source.watermark_ns, source.newest_ns = None, NEVER
        self._set_until(source)

    def _set_until(self, source: _Input) -> None:
        """Update until when the modality counts as present."""
        until_ns = NEVER
        if source.watermark_ns is not None and source.spec.name not in self._faults:
            until_ns = source.watermark_ns + self._patience_ns(source)
        self._until_ns[source.column] = until_ns

    def _patience_ns(self, source: _Input) -> int:
        """Timeout of a modality's messages."""
        if source.spec.snapshot:
            # Words inherently lag and leave the window on their own; only their worker's silence counts.
            return WINDOW_NS
        return int(source.pace.patience(self._max_age_ns, _MOST_AGE_NS))


def ages_ms(
    names: Iterable[str], t_end_ns: int, present: Sequence[bool], newest_ns: Sequence[int]
) -> dict[str, float | None]:
    """Age of each modality's newest row at an instant; None if it has none, or is masked as a whole."""
    return {
        name: (t_end_ns - newest) / NS_PER_MS if there and newest != NEVER else None
        for name, there, newest in zip(names, present, newest_ns, strict=True)
    }


class _Input:
    """A modality of a session: where its rows go, and what has come of it.

    Attributes:
        column: in `Windows.until_ns`. watermark_ns: end of its newest message. newest_ns: time of its newest row.
    """

    __slots__ = "column", "newest_ns", "order", "pace", "spec", "track", "watermark_ns"

    def __init__(self, spec: ModalitySpec, windows: Windows) -> None:
        self.spec, self.track, self.column = spec, windows.tracks[spec.name], windows.column[spec.name]
        self.order, self.pace = _Order(), Pace()
        self.watermark_ns: int | None = None
        self.newest_ns = NEVER


class _Order:
    """Sequence numbers of one publisher: detects late, duplicate and lost messages, and those of an earlier run."""

    __slots__ = "_ended_runs", "_missing", "_next", "in_order", "run"

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
        run, seq = message.run, message.seq
        is_news = watermark_ns is not None and message.t_end_ns > watermark_ns + _NEWS_NS
        if run != self.run:
            if run in self._ended_runs:
                if not is_news:
                    return "stale_run"
                self._ended_runs.remove(run)
            if self.run is not None:
                self._ended_runs.append(self.run)
            self.run, self._next = run, seq
            self._missing.clear()
        if seq >= self._next:
            if gap := seq - self._next:
                if gap > _MAX_GAP and not is_news:
                    return "absurd_seq"
                if gap > _MAX_GAP:
                    drops["renumbered"] += 1
                else:
                    drops["lost"] += gap
                self._missing.extend(range(max(self._next, seq - 256), seq))
            self._next = seq + 1
            self.in_order = True
            return None
        self.in_order = False
        if seq in self._missing:
            self._missing.remove(seq)
            drops["lost"] -= 1
            return None
        if not is_news:
            return "duplicate"
        drops["renumbered"] += 1
        self._next = seq + 1
        self._missing.clear()
        self.in_order = True
        return None
