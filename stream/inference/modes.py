"""The three ways to serve a session, each with a schedule, a pace and an end of its own."""

from __future__ import annotations

from typing import Any

from mien.clock import NS_PER_S
from mien.messages import WORKERS, Cue, FeatureWindow, Status
from mien.stream.inference.schedule import CompleteSchedule, CueSchedule, LiveSchedule, Trigger
from mien.stream.inference.session import Session
from mien.stream.processes.control import Control

_AHEAD_NS = 2 * NS_PER_S  # of a clip in full: how far the quickest worker may be ahead of the slowest


class Live(Session):
    """Devices, and clips at their own pace: the newest instant, and what is older is skipped."""

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        settings = self.config.inference
        self._schedule = LiveSchedule(settings.max_hz, settings.hop_ms, settings.max_age_ms)

    def take(self, message: FeatureWindow | Cue, received_ns: int) -> None:
        if isinstance(message, FeatureWindow) and self.push(message, received_ns):
            self._schedule.hear(message, received_ns)

    def trigger(self, now_ns: int) -> Trigger | None:
        trigger = self._schedule.due(now_ns)
        return None if self.has_all else trigger

    def wake_ns(self) -> int:
        return self._schedule.wake_ns()

    @property
    def dropped(self) -> dict[str, int]:
        return {"superseded": self._schedule.skipped}

    def lose(self, modality: str) -> None:
        self._schedule.lose(modality)


class Complete(Session):
    """A clip as fast as possible: every instant, once all workers have spoken up to it; nothing is dropped."""

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
            self._schedule.hear(message, received_ns)

    def trigger(self, now_ns: int) -> Trigger | None:
        del now_ns
        trigger = self._schedule.due(self._open_watermarks())
        if trigger is not None:
            self._push_until(trigger.t_end_ns)
        return trigger

    def last_trigger(self) -> Trigger | None:
        self._push_until(None)
        return super().last_trigger()

    def wake_ns(self) -> int:
        return 0

    @property
    def dropped(self) -> dict[str, int]:
        return {"superseded": self._schedule.skipped}

    @property
    def has_all(self) -> bool:
        return super().has_all and self._schedule.finished

    def holds_back(self, worker: str) -> bool:
        marks = self._open_watermarks()
        slowest_ns = min((mark or 0 for mark in marks.values()), default=0)
        return (marks.get(WORKERS[worker]) or 0) > slowest_ns + _AHEAD_NS

    def end(self, modality: str) -> None:
        self._schedule.end(modality)

    def _push_until(self, t_end_ns: int | None) -> None:
        for message in self._schedule.take(t_end_ns):
            self.push(message, None)

    def _open_watermarks(self) -> dict[str, int | None]:
        """Up to when each modality has spoken whose worker has not ended."""
        return {
            WORKERS[worker]: self._schedule.watermark_ns(WORKERS[worker])
            for worker in self.workers
            if worker not in self.ended
        }


class Replay(Session):
    """A recording: what its cues ask for, from the messages that they name, as it was done when it was made."""

    replayed = True
    span_ns = 80 * NS_PER_S  # older mien took in messages of clips long before they were predicted from

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
            self._schedule.hear(message)

    def trigger(self, now_ns: int) -> Trigger | None:
        found = self._schedule.due(now_ns)
        if found is None:
            return None
        cue, messages = found
        if cue.reset:
            self.assembler.reset()
            self.post.smoothed = None
        if cue.smoothed is not None:
            self.post.smoothed = cue.smoothed
        for message in messages:
            self.push(message, None)
        self.assembler.faults = cue.absent
        return Trigger(cue.t_end_ns)

    def wake_ns(self) -> int:
        return 0

    @property
    def dropped(self) -> dict[str, int]:
        return {"lost": self._schedule.lost}

    @property
    def has_all(self) -> bool:
        return self._schedule.finished

    def last_trigger(self) -> None:
        """None: the recording has it."""

    def note_status(self, status: Status) -> None:
        """A recorded one, for those who watch; what it meant for a prediction is in the prediction's cue."""

    def note_absent(self, absent: dict[str, str]) -> None:
        """Statuses are the recording's."""


def mode_of(control: Control) -> type[Session]:
    """How a session is served."""
    if control.assignment.origin == "replay":
        return Replay
    return Complete if control.assignment.config.clip.fast else Live
