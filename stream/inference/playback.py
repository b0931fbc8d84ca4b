"""Playback modes: whole clips, and recordings.

For a whole clip, every instant is predicted as soon as all modalities have reached it, and from nothing later: so the
result depends only on the clip, not on the speed of processes. For a recording, cues give the instants and the messages
to predict from; the clock plays no part.
The schedules are pure: they get messages and times, and read no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import WORKERS, Cue, FeatureWindow, Span, Status
from mien.stream.inference.prediction import JITTER, LEADERS, Live, Mode, Trigger
from mien.stream.processes.control import Control
from mien.stream.sources.pace import Pace

_AHEAD_NS = 2 * NS_PER_S  # for whole clips: how far the fastest worker may be ahead of the slowest
_PATIENCE_NS = 10 * NS_PER_S  # timeout for messages that a cue names and that were lost in transit
_MOST_HELD = 4096


class CompleteSchedule:
    """Every instant of the leading modality, in order, once all modalities have reached it.

    Messages are queued here until their instant is due.

    Args:
        modalities: those present. max_hz: maximum predictions per second of the clip.
        max_age_ms: a leader silent for longer loses the lead until its next message, and one that is usually silent
            for longer never leads.
    """

    def __init__(self, modalities: Collection[str], max_hz: float, max_age_ms: int = 400) -> None:
        self._interval_ns = int(NS_PER_S / max_hz * JITTER)
        self._max_age_ns = max_age_ms * NS_PER_MS
        self._leaders = [m for m in LEADERS if m in modalities] or list(modalities)
        self._pending: dict[str, deque[Trigger]] = {m: deque() for m in self._leaders}
        self._led_ns: dict[str, int] = {}  # newest past instant of each leader
        self._paces = {m: Pace() for m in self._leaders}
        self._waiting: dict[str, deque[FeatureWindow]] = {}
        self._marks_ns: dict[str, int] = {}
        self._taken_ns: dict[str, int] = {}  # end of the newest message taken
        self._ended: set[str] = set()
        self._last_ns: int | None = None

    def add(self, message: FeatureWindow, received_ns: int) -> None:
        modality = message.modality
        self._waiting.setdefault(modality, deque()).append(message)
        self._marks_ns[modality] = max(self._marks_ns.get(modality, message.t_end_ns), message.t_end_ns)
        if modality in self._pending:
            self._pending[modality].append(
                Trigger(message.t_end_ns, message.stamps.get("read"), message.stamps.get("sent"), received_ns)
            )

    def take(self, t_end_ns: int | None) -> list[FeatureWindow]:
        """The messages about the time up to an instant; None: all that are left.

        The last words of a clip are committed in a second message with the same end. An instant at that end is due
        after the first, so it never takes the second, no matter how early it arrived.
        """
        taken: list[FeatureWindow] = []
        for modality, waiting in self._waiting.items():
            while waiting and (t_end_ns is None or begins_ns(waiting[0]) <= t_end_ns):
                end_ns = waiting[0].t_end_ns
                if end_ns == t_end_ns == self._taken_ns.get(modality):
                    break
                self._taken_ns[modality] = end_ns
                taken.append(waiting.popleft())
        return taken

    def watermark_ns(self, modality: str) -> int | None:
        """A modality's watermark; None if it has sent nothing."""
        return self._marks_ns.get(modality)

    def end(self, modality: str) -> None:
        self._ended.add(modality)

    def due(self, watermarks_ns: Mapping[str, int | None]) -> Trigger | None:
        """The next instant reached by all workers; the watermarks are of those that have not ended."""
        while (leader := self._next_leader()) is not None:
            trigger = self._pending[leader][0]
            if any(mark is None or mark < trigger.t_end_ns for mark in watermarks_ns.values()):
                return None
            early = self._last_ns is not None and trigger.t_end_ns - self._last_ns < self._interval_ns
            leads = not early and self._leads(leader, trigger.t_end_ns)
            self._pass(leader)
            if leads:
                self._last_ns = trigger.t_end_ns
                return trigger
        return None

    def pass_over(self, t_end_ns: int) -> None:
        """Skip the instants up to and including one."""
        while (leader := self._next_leader()) is not None and self._pending[leader][0].t_end_ns <= t_end_ns:
            self._pass(leader)

    @property
    def finished(self) -> bool:
        """Whether the queue is empty and nothing more will come."""
        return self._ended.issuperset(self._leaders) and not any(self._pending.values())

    def _next_leader(self) -> str | None:
        """The modality with the earliest queued instant."""
        waiting = [leader for leader in self._leaders if self._pending[leader]]
        return min(waiting, key=lambda leader: self._pending[leader][0].t_end_ns, default=None)

    def _leads(self, modality: str, t_ns: int) -> bool:
        """Whether an instant of this modality is predicted: no preferred leader has a recent one."""
        others = self._leaders[: self._leaders.index(modality)]
        quick = [other for other in others if not self._is_over(other) and not self._is_slow(other)]
        if any(t_ns - self._led_ns.get(other, -(1 << 62)) <= self._max_age_ns for other in quick):
            return False
        behind = [other for other in self._leaders if other not in others and other != modality]
        return not self._is_slow(modality) or all(self._is_over(other) for other in behind)

    def _is_over(self, modality: str) -> bool:
        return modality in self._ended and not self._pending[modality]

    def _is_slow(self, modality: str) -> bool:
        return self._paces[modality].is_slower(self._max_age_ns)

    def _pass(self, leader: str) -> None:
        trigger = self._pending[leader].popleft()
        self._led_ns[leader] = trigger.t_end_ns
        self._paces[leader].add(trigger.t_end_ns)


def begins_ns(message: FeatureWindow) -> int:
    """The start of the time that a message is about: that of its first row, or its end for a snapshot (words)."""
    whole = message.words or not len(message.times_ns)
    return message.t_end_ns if whole else min(int(message.times_ns[0]), message.t_end_ns)


class Complete(Mode):
    """A clip as fast as possible: every instant, once all workers have reached it; nothing is dropped."""

    at_once = 32
    captured = False

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        settings = self.config.inference
        self._schedule = CompleteSchedule(
            [WORKERS[worker] for worker in self.workers], settings.max_hz, settings.max_age_ms
        )

    def take(self, message: FeatureWindow | Cue, received_ns: int) -> None:
        if isinstance(message, FeatureWindow):
            self._schedule.add(message, received_ns)

    def trigger(self, now_ns: int) -> Trigger | None:
        del now_ns
        trigger = self._schedule.due(self._open_watermarks())
        if trigger is not None:
            self._push_until(trigger.t_end_ns)
        return trigger

    def last_trigger(self) -> Trigger | None:
        self._push_until(None)
        return super().last_trigger()

    @property
    def has_all(self) -> bool:
        return super().has_all and self._schedule.finished

    def holds_back(self, worker: str) -> bool:
        marks = self._open_watermarks()
        slowest_ns = min((mark or 0 for mark in marks.values()), default=0)
        return (marks.get(WORKERS[worker]) or 0) > slowest_ns + _AHEAD_NS

    def end(self, modality: str) -> None:
        self._schedule.end(modality)

    def pass_over(self, t_end_ns: int) -> None:
        """Process the messages up to an instant, and skip the instants until then."""
        self._schedule.pass_over(t_end_ns)
        self._push_until(t_end_ns)

    def _push_until(self, t_end_ns: int | None) -> None:
        for message in self._schedule.take(t_end_ns):
            self.push(message, None)

    def _open_watermarks(self) -> dict[str, int | None]:
        """The watermarks of modalities whose worker has not ended."""
        return {
            WORKERS[worker]: self._schedule.watermark_ns(WORKERS[worker])
            for worker in self.workers
            if worker not in self.ended
        }


class CueSchedule:
    """The predictions requested by a replay's cues, in order, each once the messages that it names have arrived."""

    def __init__(self) -> None:
        self.finished = False
        self.lost = 0
        self._cues: deque[Cue] = deque()
        self._next = 0
        self._held: dict[tuple[str, int], dict[int, FeatureWindow]] = {}
        self._waiting_since_ns: int | None = None

    def add(self, message: FeatureWindow) -> None:
        """Keep a features message until a cue names it."""
        held = self._held.setdefault((message.modality, message.run), {})
        held[message.seq] = message
        if len(held) > _MOST_HELD:  # of a modality that no cue names
            del held[next(iter(held))]

    def cue(self, cue: Cue) -> None:
        """Add a cue; duplicates are ignored."""
        if cue.seq >= self._next:
            self._cues.append(cue)
            self._next = cue.seq + 1

    def due(self, now_ns: int) -> tuple[Cue, list[FeatureWindow]] | None:
        """The next cue and its messages, once all have arrived, or after a timeout."""
        if not self._cues:
            return None
        cue = self._cues[0]
        missing = sum(
            seq not in self._held.get((modality, run), {})
            for modality, spans in cue.inputs.items()
            for run, first, last in spans
            for seq in range(first, last + 1)
        )
        if missing:
            self._waiting_since_ns = now_ns if self._waiting_since_ns is None else self._waiting_since_ns
            if now_ns - self._waiting_since_ns < _PATIENCE_NS:
                return None
            self.lost += missing
        self._waiting_since_ns = None
        self._cues.popleft()
        if cue.end:
            self.finished = True
            return None
        return cue, [message for modality, spans in cue.inputs.items() for message in self._take(modality, spans)]

    def _take(self, modality: str, spans: tuple[Span, ...]) -> list[FeatureWindow]:
        taken = []
        for run, first, last in spans:
            held = self._held.get((modality, run), {})
            taken += [held[seq] for seq in range(first, last + 1) if seq in held]
            # Numbers only increase: messages not named by any cue so far were not used in the recorded session either.
            self._held[modality, run] = {seq: message for seq, message in held.items() if seq > last}
        return taken


class Replay(Mode):
    """A recording: the predictions that its cues request, from the messages that they name, as in the original."""

    replayed = True
    span_ns = 80 * NS_PER_S  # older versions consumed messages of clips long before predicting from them

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        self._schedule = CueSchedule()
        if self.config.clip.fast:
            self.at_once, self.captured = Complete.at_once, Complete.captured

    def take(self, message: FeatureWindow | Cue, received_ns: int) -> None:
        del received_ns
        if isinstance(message, Cue):
            self._schedule.cue(message)
        else:
            self._schedule.add(message)

    def trigger(self, now_ns: int) -> Trigger | None:
        found = self._schedule.due(now_ns)
        if found is None:
            return None
        cue, messages = found
        if cue.reset:
            self.assembler.reset()
            self.smoothed = None
        if cue.smoothed is not None:
            self.smoothed = cue.smoothed
        for message in messages:
            self.push(message, None)
        self.assembler.faults = cue.absent
        return Trigger(cue.t_end_ns)

    @property
    def dropped(self) -> dict[str, int]:
        return {"lost": self._schedule.lost}

    @property
    def has_all(self) -> bool:
        return self._schedule.finished

    def last_trigger(self) -> None:
        """None: the recording has it."""

    def note_status(self, status: Status) -> None:
        """A recorded status, for viewers; its effect on a prediction is in the prediction's cue."""


def mode_of(control: Control) -> type[Mode]:
    """The mode of a session."""
    if control.assignment.origin == "replay":
        return Replay
    return Complete if control.assignment.config.clip.fast else Live
