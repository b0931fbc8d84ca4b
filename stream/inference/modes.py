"""The three ways to serve a session: when it is predicted, and from what. No sockets here; `session` has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from mien.clock import NS_PER_S
from mien.config import Config
from mien.engines.rings import Windows
from mien.engines.snapshots import SPAN_NS, Snapshots
from mien.messages import (
    WORKERS,
    Cue,
    FeatureWindow,
    ModalitySpec,
    Phrase,
    Prediction,
    Status,
    Transcript,
    Word,
    spans_of,
)
from mien.stream.inference.assembler import Assembler, ages_ms
from mien.stream.inference.faults import Faults
from mien.stream.inference.postprocess import Answer, Evidence, Postprocessor, latency_ms
from mien.stream.inference.refusals import Refusals
from mien.stream.inference.schedule import CompleteSchedule, CueSchedule, LiveSchedule, Trigger
from mien.stream.processes.control import Control

_AHEAD_NS = 2 * NS_PER_S  # of a clip in full: how far the quickest worker may be ahead of the slowest
_SILENT = Transcript()


class Mode(ABC):
    """What is known of a session, and when to predict from it.

    Args:
        config: the session's.
        workers: that speak in it. absent: per modality that nobody captures, why.
        specs: the modalities of the model, by name. windows: where their rows are kept.
        run: of the process. refusals: where what is not believed is counted.

    Attributes:
        place: in `windows`. ended: workers whose clip is over. seq: number of the next prediction.
        absent: modalities that the last prediction was made without, and why.
        span_ns: how much time is kept of it. captured: whether messages are as old as their stamps say.
        at_once: messages of a worker that are taken in before anything is predicted.
    """

    at_once = 256
    replayed = False
    span_ns = SPAN_NS
    captured = True

    def __init__(
        self,
        config: Config,
        workers: Collection[str],
        absent: Mapping[str, str],
        specs: Mapping[str, ModalitySpec],
        windows: Windows,
        run: int,
        refusals: Refusals,
    ) -> None:
        self.config = config
        self.workers = tuple(workers)
        self.refusals = refusals
        self.seq = 0
        self.absent: dict[str, str] = {}
        self.ended: set[str] = set()
        self._windows = windows
        self.assembler = Assembler(specs, config.inference.max_age_ms, windows)
        self.place = self.assembler.place
        for modality in specs:
            if modality not in (WORKERS[worker] for worker in self.workers):
                self.assembler.explanations[modality] = absent.get(modality, "not captured")
        self.post = Postprocessor(config.session, tuple(specs), config.inference.smoothing_s, run, refusals)
        self._words = next((track for track in windows.tracks.values() if isinstance(track, Snapshots)), None)
        self._faults = Faults()
        self._unclear: dict[str, str] = {}  # why nothing is in the rows of a modality that goes on, as its worker says
        self._predicted_ns = 0  # the newest instant
        self._said_last = False
        self._taken_in: dict[str, list[tuple[int, int]]] = {}

    # --- what a mode decides ---------------------------------------------------------------------------------------

    @abstractmethod
    def take(self, message: FeatureWindow | Cue, received_ns: int) -> None:
        """A message of features, or a cue."""

    @abstractmethod
    def trigger(self, now_ns: int) -> Trigger | None:
        """What to predict now, if anything, until all workers have ended."""

    @abstractmethod
    def wake_ns(self) -> int:
        """When there may be something to predict although no message has come."""

    @property
    @abstractmethod
    def dropped(self) -> dict[str, int]:
        """Messages that were not predicted from, by cause."""

    @property
    def has_all(self) -> bool:
        """Whether all workers have ended, and nothing more is due."""
        return self.ended.issuperset(self.workers)

    def last_trigger(self) -> Trigger | None:
        """Every clip ends with a prediction that has seen all of it: the last words are committed at its very end."""
        marks = [self.assembler.watermark_ns(WORKERS[worker]) for worker in self.workers]
        end_ns = max((mark for mark in marks if mark is not None), default=None)
        return Trigger(max(end_ns, self._predicted_ns)) if end_ns is not None else None

    def holds_back(self, worker: str) -> bool:
        """Whether a worker's messages have to wait for those of others."""
        del worker
        return False

    def lose(self, modality: str) -> None:
        """A modality is known to be lost."""
        del modality

    def end(self, modality: str) -> None:
        """A modality's clip is over."""
        del modality

    # --- what all have in common -------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the last prediction is made."""
        return self._said_last

    def note_status(self, status: Status) -> None:
        """What a worker says of itself."""
        modality = WORKERS.get(status.worker)
        if modality is None or modality not in self.assembler.specs:
            return
        if status.state in ("degraded", "failed", "stopped"):
            self._faults.note_worker(modality, status.last_error or status.state)
            self.lose(modality)
        else:
            self._faults.note_worker(modality, None)
        if unclear := status.detail.get("unclear"):
            self._unclear[modality] = str(unclear)
        else:
            self._unclear.pop(modality, None)
        if status.state == "ended":
            self.assembler.explanations[modality] = status.last_error or "the clip has ended"
            self.ended.add(status.worker)
            self.end(modality)
        else:
            self.assembler.explanations.pop(modality, None)
            self.ended.discard(status.worker)
        self._note_faults()

    def note_fault(self, modality: str, fault: str | None, *, dead: bool = False) -> None:
        """What the supervisor says of a modality's process; None: it answers."""
        if fault is None:
            self._faults.clear_process(modality)
        else:
            self._faults.note_process(modality, fault, dead=dead)
            self.lose(modality)
        self._note_faults()

    def due(self, now_ns: int) -> Trigger | None:
        """What is to be predicted now, if anything; the next one once this is predicted."""
        trigger = self.trigger(now_ns)
        if trigger is None and not self._said_last and self.has_all:
            self._said_last = True
            trigger = self.last_trigger()
        return trigger

    def predicted(
        self,
        trigger: Trigger,
        answer: Answer,
        present: list[bool],
        newest_ns: list[int],
        model: str,
        began_ns: int,
        done_ns: int,
    ) -> Prediction:
        """The prediction of what was due.

        Args:
            present, newest_ns: per modality, as in `mien.engines.rings.Look`.
            model: checkpoint and engine. began_ns, done_ns: when it was asked, and when it had answered.
        """
        t_end_ns, names = trigger.t_end_ns, self.assembler.specs
        words: tuple[Word, ...] = ()
        phrases: tuple[Phrase, ...] = ()
        transcript, silenced = _SILENT, False
        if self._words is not None and present[self._windows.column[self._words.spec.name]]:
            words, transcript = self._words.words[self.place], self._words.transcripts[self.place]
            phrases = self._words.phrases[self.place]
            silenced = bool(self._words.reasons[self.place])
        absent = {} if all(present) and not silenced else self.assembler.absent(t_end_ns)
        ages = ages_ms(names, t_end_ns, present, newest_ns)
        absent = {**{m: why for m, why in self._unclear.items() if ages.get(m) is None}, **absent}
        self.absent = absent
        prediction = self.post.prediction(
            t_end_ns,
            answer,
            Evidence(ages, absent, words, transcript, phrases),
            seq=self.seq,
            model=model,
            inputs=spans_of(self._taken_in),
            latency=latency_ms(trigger, began_ns, done_ns, captured=self.captured),
        )
        self._taken_in.clear()
        self.seq += 1
        self._predicted_ns = max(self._predicted_ns, t_end_ns)
        return prediction

    def push(self, message: FeatureWindow, received_ns: int | None) -> bool:
        """Put a message into the windows. Whether it was accepted; if not, why is counted."""
        if not self.assembler.push(message, received_ns):
            self.refusals.last = self.assembler.last_refusal
            return False
        self._taken_in.setdefault(message.modality, []).append((message.run, message.seq))
        if self._faults.note_run(message.modality, message.run):
            self._note_faults()
        return True

    def _note_faults(self) -> None:
        if not self.replayed:
            self.assembler.faults = self._faults.reasons()


class Live(Mode):
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


class Complete(Mode):
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

    def pass_over(self, t_end_ns: int) -> None:
        """Take in what was said of the time up to an instant, and leave out the instants until then."""
        self._schedule.pass_over(t_end_ns)
        self._push_until(t_end_ns)

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


class Replay(Mode):
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


def mode_of(control: Control) -> type[Mode]:
    """How a session is served."""
    if control.assignment.origin == "replay":
        return Replay
    return Complete if control.assignment.config.clip.fast else Live
