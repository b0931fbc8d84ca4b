"""Modes of a session: when to predict, from which messages, and what to publish of the model's answer.

This module has what all modes share, and `Live`; `playback` has the others, `session` the sockets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mien.clock import NS_PER_MS, NS_PER_S
from mien.config import Config
from mien.engines.predictor import Answer
from mien.engines.ring import FOREVER_NS
from mien.engines.rings import Windows
from mien.engines.snapshots import SPAN_NS, Snapshots
from mien.messages import (
    EMOTIONS,
    WORKERS,
    Cue,
    FeatureWindow,
    ModalitySpec,
    Phrase,
    Prediction,
    Span,
    Status,
    Transcript,
    Word,
    spans_of,
)
from mien.stream.inference.assembler import Assembler, ages_ms
from mien.stream.inference.faults import Faults

LEADERS = ("vision", "audio")
JITTER = 0.85  # so that max_hz = 30 does not halve a 30 Hz camera that is occasionally a little early
_NEVER_NS = -(1 << 62)
_SILENT = Transcript()
Seen = tuple[list[bool], list[int]]  # whether each modality is present (not masked), and the time of its newest row
Asked = tuple[int, int]
Expected = tuple[int, Collection[str]]  # the instant of a prediction that is not due yet, and modalities with new rows


class Trigger(NamedTuple):
    """An instant to predict for, with the times of the message that triggered it (None for the timer)."""

    t_end_ns: int
    read_ns: int | None = None
    sent_ns: int | None = None
    received_ns: int | None = None


class Evidence(NamedTuple):
    """What a prediction says about its window besides the model's answer; fields as in `mien.Prediction`."""

    words: tuple[Word, ...]
    phrases: tuple[Phrase, ...]
    transcript: Transcript
    age_ms: dict[str, float | None]
    absent: dict[str, str]
    inputs: dict[str, tuple[Span, ...]]


class Mode(ABC):
    """State of a session, and when to predict from it.

    Args:
        workers: of the session. absent: modalities that are not captured, with the reason.
        specs: the modalities of the model, by name. windows: holds their rows.

    Attributes:
        place: in `windows`. ended: workers whose clip has ended. seq: number of the next prediction.
        absent: modalities missing in the last prediction, with the reason.
        smoothed: the smoothed sentiment and its instant; None before the first.
        span_ns: length of the history kept. late_ns: as for `mien.engines.ring.Ring`.
        captured: whether the messages' stamps are capture times.
        at_once: maximum messages of a worker to process before predicting.
        is_over: whether the last prediction was made.
    """

    at_once = 256
    replayed = False
    span_ns = SPAN_NS
    late_ns = FOREVER_NS
    captured = True

    def __init__(
        self,
        config: Config,
        workers: Collection[str],
        absent: Mapping[str, str],
        specs: Mapping[str, ModalitySpec],
        windows: Windows,
        run: int,
    ) -> None:
        self.config = config
        self.workers = tuple(workers)
        self.seq = 0
        self.absent: dict[str, str] = {}
        self.smoothed: tuple[float, int] | None = None
        self.ended: set[str] = set()
        self._windows, self._run = windows, run
        self._smoothing_ns = config.inference.smoothing_s * NS_PER_S
        self.assembler = Assembler(specs, config.inference.max_age_ms, windows)
        self.place = self.assembler.place
        for modality in specs:
            if modality not in (WORKERS[worker] for worker in self.workers):
                self.assembler.explanations[modality] = absent.get(modality, "not captured")
        self._words = next((track for track in windows.tracks.values() if isinstance(track, Snapshots)), None)
        self._faults = Faults()
        self._unclear: dict[str, str] = {}  # why the rows of a running modality are empty, as reported by its worker
        self._predicted_ns = 0  # the newest instant
        self.is_over = False
        self._taken_in: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    # --- differs between modes ------------------------------------------------------------------------------------

    @abstractmethod
    def take(self, message: FeatureWindow | Cue, received_ns: int) -> None:
        """Process a features message or a cue."""

    @abstractmethod
    def trigger(self, now_ns: int) -> Trigger | None:
        """The prediction due now, if any, while workers are running."""

    def wake_ns(self) -> int:
        """When a prediction may become due without a new message."""
        return 0

    @property
    def dropped(self) -> dict[str, int]:
        """Messages not used in a prediction, by cause."""
        return {}

    @property
    def has_all(self) -> bool:
        """Whether all workers have ended, and nothing more is due."""
        return self.ended.issuperset(self.workers)

    def last_trigger(self) -> Trigger | None:
        """The final prediction of a clip, from all its data: the last words are committed only at its end."""
        marks = [self.assembler.watermark_ns(WORKERS[worker]) for worker in self.workers]
        end_ns = max((mark for mark in marks if mark is not None), default=None)
        return Trigger(max(end_ns, self._predicted_ns)) if end_ns is not None else None

    def holds_back(self, worker: str) -> bool:
        """Whether a worker's messages must wait for those of others."""
        del worker
        return False

    def mark_lost(self, modality: str) -> None:
        del modality

    def end(self, modality: str) -> None:
        del modality

    # --- common to all modes ------------------------------------------------------------------------------------

    def note_status(self, status: Status) -> None:
        modality = WORKERS.get(status.worker)
        if modality is None or modality not in self.assembler.specs:
            return
        if status.state in ("degraded", "failed", "stopped"):
            self._faults.note_worker(modality, status.last_error or status.state)
            self.mark_lost(modality)
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
        """Process a fault of a modality's process, reported by the supervisor; None: it responds."""
        if fault is None:
            self._faults.clear_process(modality)
        else:
            self._faults.note_process(modality, fault, dead=dead)
            self.mark_lost(modality)
        self._note_faults()

    def expected(self) -> Expected | None:
        """What has arrived for the next prediction since the last call; None if nothing has, or none is expected."""
        return None

    def due(self, now_ns: int) -> Trigger | None:
        """The prediction due now, if any; the next one only after `predicted`."""
        trigger = self.trigger(now_ns)
        if trigger is None and not self.is_over and self.has_all:
            self.is_over = True
            trigger = self.last_trigger()
        return trigger

    def evidence(self, trigger: Trigger, seen: Seen) -> Evidence:
        """What the prediction that is due rests on. Messages taken in later are evidence for the next one.

        Args:
            seen: per modality, as in `mien.engines.rings.Look`.
        """
        present, newest_ns = seen
        t_end_ns = trigger.t_end_ns
        words: tuple[Word, ...] = ()
        phrases: tuple[Phrase, ...] = ()
        transcript, silenced = _SILENT, False
        if self._words is not None and present[self._windows.column[self._words.spec.name]]:
            words, transcript = self._words.words[self.place], self._words.transcripts[self.place]
            phrases = self._words.phrases[self.place]
            silenced = bool(self._words.reasons[self.place])
        absent = {} if all(present) and not silenced else self.assembler.absent(t_end_ns)
        ages = ages_ms(self.assembler.specs, t_end_ns, present, newest_ns)
        if self._unclear:
            absent = {**{m: why for m, why in self._unclear.items() if ages.get(m) is None}, **absent}
        self.absent = absent
        inputs = spans_of(self._taken_in)
        self._taken_in.clear()
        return Evidence(words, phrases, transcript, ages, absent, inputs)

    def predicted(
        self, trigger: Trigger, evidence: Evidence, answer: Answer, model: str, asked_ns: Asked
    ) -> Prediction:
        """Make the prediction that was due; it abstains if nothing was observed.

        Args:
            model: checkpoint and engine. asked_ns: when the model was called, and when it returned.
        """
        t_end_ns, names = trigger.t_end_ns, self.assembler.specs
        answers = answer.is_observed
        if answers and not math.isfinite(answer.sentiment):
            self.assembler.refuse(
                "nonfinite_output", "the model returned a non-finite number; that prediction was dropped"
            )
            answers = False
        prediction = Prediction(
            session=self.config.session,
            run=self._run,
            seq=self.seq,
            t_end_ns=t_end_ns,
            sentiment=answer.sentiment if answers else None,
            sentiment_smooth=self._smooth(answer.sentiment, t_end_ns) if answers else None,
            emotions=dict(zip(EMOTIONS, answer.emotions, strict=True)) if answers else None,
            confidence=answer.confidence if answers else None,
            gates=dict(zip(names, answer.shares, strict=True)) if answers else dict.fromkeys(names, 0.0),
            age_ms=evidence.age_ms,
            absent=evidence.absent,
            abstains=None if answers else "no face, no voice and no words in the window",
            transcript=evidence.transcript,
            words=evidence.words,
            phrases=evidence.phrases,
            latency=_latency_ms(trigger, *asked_ns, captured=self.captured),
            model=model,
            inputs=evidence.inputs,
        )
        self.seq += 1
        self._predicted_ns = max(self._predicted_ns, t_end_ns)
        return prediction

    def push(self, message: FeatureWindow, received_ns: int | None) -> bool:
        """Add a message to the windows. Returns whether it was accepted; if not, the cause is counted."""
        if not self.assembler.push(message, received_ns):
            return False
        modality, run = message.modality, message.run
        self._taken_in[modality].append((run, message.seq))
        if self._faults.note_run(modality, run):
            self._note_faults()
        return True

    def _smooth(self, sentiment: float, t_ns: int) -> float:
        smooth = sentiment
        if self.smoothed is not None and self._smoothing_ns > 0:
            before, at_ns = self.smoothed
            elapsed_ns = t_ns - at_ns
            if 0 <= elapsed_ns < 10 * self._smoothing_ns:
                smooth = before + (1.0 - math.exp(-elapsed_ns / self._smoothing_ns)) * (sentiment - before)
        self.smoothed = smooth, t_ns
        return smooth

    def _note_faults(self) -> None:
        if not self.replayed:
            self.assembler.faults = self._faults.reasons()


class Live(Mode):
    """Devices, and clips at their own pace: only the newest instant is predicted, older ones are counted as skipped.

    The leading modality sets the pace: vision while it delivers often enough, else audio, else a timer. A leader silent
    for longer than `max_age_ms` loses the lead, and one that is usually silent for longer never leads.
    """

    late_ns = 4 * NS_PER_S  # the assembler accepts messages one second late; their rows may be older than that

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        settings = self.config.inference
        self._interval_ns = int(NS_PER_S / settings.max_hz * JITTER)
        self._hop_ns = settings.hop_ms * NS_PER_MS
        self._max_age_ns = settings.max_age_ms * NS_PER_MS
        self._led_ns: dict[str, int] = {}  # when each leader was last received
        self._pending: Trigger | None = None
        self._last_ns = self._step_ns = 0
        self._last_made_ns = 0
        self._skipped = 0
        self._updated: set[str] = set()  # since the last prediction
        self._has_news = False

    def take(self, message: FeatureWindow | Cue, received_ns: int) -> None:
        if not isinstance(message, FeatureWindow) or not self.push(message, received_ns):
            return
        modality, t_end_ns = message.modality, message.t_end_ns
        leads = False
        if modality in LEADERS:
            self._led_ns[modality] = received_ns
            leads = modality == self._leader(received_ns)
        if not leads:
            # Of the one that leads, the next rows come only with the next instant.
            self._updated.add(modality)
            self._has_news = True
        elif t_end_ns > self._last_ns:
            self._skipped += self._pending is not None
            self._pending = Trigger(t_end_ns, message.stamps.get("read"), message.stamps.get("sent"), received_ns)

    def trigger(self, now_ns: int) -> Trigger | None:
        trigger = self._pending
        if trigger is not None:
            if trigger.t_end_ns - self._last_ns < self._interval_ns:
                self._pending = None
                self._skipped += 1
                return None
        elif self._leader(now_ns) is None and now_ns - self._last_made_ns >= self._hop_ns:
            trigger = Trigger(max(now_ns, self._last_ns + 1))
        if trigger is None:
            return None
        self._step_ns = trigger.t_end_ns - self._last_ns
        self._pending, self._last_ns, self._last_made_ns = None, trigger.t_end_ns, now_ns
        self._updated.clear()
        self._has_news = True
        return None if self.has_all else trigger

    def expected(self) -> Expected | None:
        """As `Mode.expected`; the instant is extrapolated from the last two."""
        is_known = self._has_news and self._pending is None and 0 < self._step_ns <= self._max_age_ns
        self._has_news = False
        return (self._last_ns + self._step_ns, self._updated) if is_known else None

    def wake_ns(self) -> int:
        if self._pending is not None:
            return 0
        wake_ns = self._last_made_ns + self._hop_ns
        for modality, led_ns in self._led_ns.items():
            silent_ns = led_ns + self._max_age_ns + 1
            if silent_ns > wake_ns and not self.assembler.paces[modality].is_slower(self._max_age_ns):
                wake_ns = silent_ns
        return wake_ns

    @property
    def dropped(self) -> dict[str, int]:
        return {"superseded": self._skipped}

    def mark_lost(self, modality: str) -> None:
        """As `Mode.mark_lost`; another one leads at once."""
        self._led_ns.pop(modality, None)

    def _leader(self, now_ns: int) -> str | None:
        for modality in LEADERS:
            is_recent = now_ns - self._led_ns.get(modality, _NEVER_NS) <= self._max_age_ns
            if is_recent and not self.assembler.paces[modality].is_slower(self._max_age_ns):
                return modality
        return None


def _latency_ms(trigger: Trigger, began_ns: int, done_ns: int, *, captured: bool) -> dict[str, float]:
    """A prediction's stages in ms.

    Args:
        began_ns, done_ns: when the model was called, and when it returned.
        captured: False for a whole clip, which has no capture times to count from.
    """
    infer = (done_ns - began_ns) / NS_PER_MS
    if not (captured and trigger.read_ns and trigger.sent_ns and trigger.received_ns):
        return {"infer": infer}
    return {
        "capture": (trigger.read_ns - trigger.t_end_ns) / NS_PER_MS,
        "feature": (trigger.sent_ns - trigger.read_ns) / NS_PER_MS,
        "transport": (trigger.received_ns - trigger.sent_ns) / NS_PER_MS,
        "wait": (began_ns - trigger.received_ns) / NS_PER_MS,
        "infer": infer,
        "total": (done_ns - trigger.read_ns) / NS_PER_MS,
    }
