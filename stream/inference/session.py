"""One session as the inference process serves it: what comes in, and what goes out. When to predict: `modes`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque

import numpy as np
import zmq

from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.engines.snapshots import SPAN_NS, Snapshots
from mien.messages import (
    WORKERS,
    About,
    Cue,
    FeatureWindow,
    Prediction,
    Status,
    Transcript,
    Word,
    WorkerState,
    spans_of,
)
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_about, encode_prediction, encode_status
from mien.stream.inference.about import person_tag, published_config, versions, with_person
from mien.stream.inference.assembler import Assembler, ages_ms
from mien.stream.inference.faults import Faults
from mien.stream.inference.inbox import Inbox
from mien.stream.inference.postprocess import Answer, Evidence, Postprocessor, latency_ms
from mien.stream.inference.refusals import Refusals
from mien.stream.inference.schedule import Trigger
from mien.stream.monitoring.meter import RateMeter, ResourceMeter, StepMeter
from mien.stream.processes.control import Control, Order

_STATUS_INTERVAL_S = 1.0
_RECENT = 300  # predictions whose latency a status sums up
_SILENT = Transcript()


class Session(ABC):
    """A session: its workers' messages in, its predictions out.

    Args:
        control: the process's view of it.
        publisher, predictor, windows, resources, steps: shared with other sessions.

    Attributes:
        place: in `windows`. ended: workers whose clip is over.
        span_ns: how much time is kept of it. captured: whether messages are as old as their stamps say.
        at_once: messages of a worker that are taken in before anything is predicted.
        reported_s: when it last said how it is.
    """

    at_once = 256
    replayed = False
    span_ns = SPAN_NS
    captured = True

    def __init__(
        self,
        control: Control,
        publisher: Publisher,
        predictor: Predictor,
        windows: Windows,
        resources: ResourceMeter,
        steps: StepMeter,
    ) -> None:
        config = control.assignment.config
        self.control = control
        self.config = config
        self.workers = control.assignment.workers or tuple(WORKERS)
        self.refusals = Refusals()
        self.reported_s = 0.0
        self._publisher, self._predictor, self._windows, self._resources = publisher, predictor, windows, resources
        self._steps = steps
        self._inbox = Inbox(
            config,
            self.workers,
            control.clock,
            self.refusals,
            supervised=control.supervised and not control.assignment.endpoint,
            replayed=self.replayed,
        )
        self.assembler = Assembler(predictor.specs, config.inference.max_age_ms, windows)
        self.place = self.assembler.place
        for modality in predictor.specs:
            if modality not in (WORKERS[worker] for worker in self.workers):
                self.assembler.explanations[modality] = control.assignment.absent.get(modality, "not captured")
        self.post = Postprocessor(
            config.session, tuple(predictor.specs), config.inference.smoothing_s, control.run, self.refusals
        )
        self._tag = person_tag(config, replayed=self.replayed)
        self._words = next((track for track in windows.tracks.values() if isinstance(track, Snapshots)), None)
        self._faults = Faults()
        self._absent: dict[str, str] = {}
        self._unclear: dict[str, str] = {}  # why nothing is in the rows of a modality that goes on, as its worker says
        self.ended: set[str] = set()
        self._said_last = False
        self._taken_in: dict[str, list[tuple[int, int]]] = {}
        self._seq = 0
        self._predicted_ns = 0  # the newest instant
        self._meter = RateMeter()
        self._totals_ms: deque[float] = deque(maxlen=_RECENT)
        self._state: WorkerState = "starting"

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

    def note_status(self, status: Status) -> None:
        """What a worker says of itself."""
        modality = WORKERS.get(status.worker)
        if modality is None or modality not in self.assembler.specs:
            return
        if status.state in ("degraded", "failed", "stopped"):
            self._faults.say(modality, status.last_error or status.state)
            self.lose(modality)
        else:
            self._faults.say(modality, None)
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

    def note_absent(self, absent: dict[str, str]) -> None:
        """Which modalities the next prediction is made without."""
        if absent.keys() != self._absent.keys():
            self._absent = dict(absent)
            self.publish_status("running" if self._state == "ready" else self._state)

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def open(self, poller: zmq.Poller) -> dict[zmq.Socket[bytes], str]:
        """Connect to the workers; the sockets at which they are heard."""
        return self._inbox.open(poller)

    def announce(self) -> None:
        """Say that it is ready, and for what."""
        self._publish_about()
        self.publish_status("ready")
        self.control.say("ready", model=self.named(self._predictor.id))

    def hear(self, worker: str) -> None:
        """Take in what a worker has sent."""
        if self.holds_back(worker):
            return
        for message, frames, received_ns in self._inbox.take(worker, self.at_once):
            if isinstance(message, Status):
                self._publisher.send(frames)
                self.note_status(message)
            else:
                self.take(message, received_ns)

    @property
    def is_on(self) -> bool:
        """Whether it has begun and not ended."""
        return self._state != "ended" and self.control.started.is_set()

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
    ) -> list[bytes]:
        """The message of a prediction of what was due.

        Args:
            present, newest_ns: per modality, as in `mien.engines.rings.Look`.
            model: checkpoint and engine. began_ns, done_ns: when it was asked, and when it had answered.
        """
        t_end_ns, names = trigger.t_end_ns, self.assembler.specs
        words: tuple[Word, ...] = ()
        transcript, silenced = _SILENT, False
        if self._words is not None and present[self._windows.column[self._words.spec.name]]:
            words, transcript = self._words.words[self.place], self._words.transcripts[self.place]
            silenced = bool(self._words.reasons[self.place])
        absent = {} if all(present) and not silenced else self.assembler.absent(t_end_ns)
        ages = ages_ms(names, t_end_ns, present, newest_ns)
        absent = {**{m: why for m, why in self._unclear.items() if ages.get(m) is None}, **absent}
        self.note_absent(absent)
        prediction: Prediction = self.post.prediction(
            t_end_ns,
            answer,
            Evidence(ages, absent, words, transcript),
            seq=self._seq,
            model=self.named(model),
            inputs=spans_of(self._taken_in),
            latency=latency_ms(trigger, began_ns, done_ns, captured=self.captured),
        )
        self._taken_in.clear()
        self._predicted_ns = max(self._predicted_ns, t_end_ns)
        self._totals_ms.append(prediction.latency.get("total", 0.0))
        self._seq += 1
        self._meter.tick()
        return encode_prediction(prediction)

    def named(self, model: str) -> str:
        """Checkpoint and engine, and whose rest this session's rows are compared with."""
        return with_person(model, self._tag)

    def settle(self) -> None:
        """Look after the connections; say that all is said, once it is, and now and then how this is."""
        self._inbox.tick()
        if self._state != "ended" and self._said_last:
            self.publish_status("ended")
            self.control.say("ended", predictions=self._seq)
        if time.monotonic() - self.reported_s >= _STATUS_INTERVAL_S:
            self.publish_status(self._state if self._state == "ended" else "running")

    def close(self) -> None:
        """Disconnect."""
        self._inbox.close()

    def push(self, message: FeatureWindow, received_ns: int | None) -> bool:
        """Put a message into the windows. Whether it was accepted; if not, why is counted."""
        if not self.assembler.push(message, received_ns):
            self.refusals.last = self.assembler.last_refusal
            return False
        self._taken_in.setdefault(message.modality, []).append((message.run, message.seq))
        if self._faults.hear(message.modality, message.run):
            self._note_faults()
        return True

    def publish_status(self, state: WorkerState) -> None:
        """Say how this session's inference is."""
        self._state, self.reported_s = state, time.monotonic()
        cpu_percent, rss_mb = self._resources.read()
        status = Status(
            session=self.config.session,
            worker="inference",
            run=self.control.run,
            t_ns=self.control.clock.now_ns(),
            state=state,
            pid=self._resources.pid,
            fps=self._meter.rate(),
            drops=self._drops(),
            last_error=self.refusals.last or self._predictor.trouble,
            cpu_percent=cpu_percent,
            rss_mb=rss_mb,
            detail={
                "model": self.named(self._predictor.id),
                "engine": self._predictor.reason,
                "predictions": self._meter.total,
                **self._latency(),
                "origin": self.control.assignment.origin,
                **self._inbox.clock_offsets(),
                **{f"absent.{modality}": reason for modality, reason in self._absent.items()},
                **{f"us.{step}": average for step, average in self._steps.averages_us().items()},
            },
            next_seq=self._seq,
        )
        self._publisher.send(encode_status(status))

    def _latency(self) -> dict[str, float]:
        """Of the newest predictions, from frame read to published, in ms."""
        if not self._totals_ms or not self.captured:
            return {}
        p50, p99 = np.percentile(self._totals_ms, (50, 99))
        return {"latency_p50_ms": round(float(p50), 2), "latency_p99_ms": round(float(p99), 2)}

    def obey(self, order: Order) -> None:
        """What the supervisor says: a status to publish, or which process is not well."""
        if order.status is not None:
            self._publisher.send(encode_status(order.status))
        modality = WORKERS.get(order.worker or "")
        if modality is None:
            return
        if order.fault is None:
            self._faults.answers(modality)
        else:
            self._faults.blame(modality, order.fault, dead=order.dead)
            self.lose(modality)
        self._note_faults()

    def _note_faults(self) -> None:
        if not self.replayed:
            self.assembler.faults = self._faults.reasons()

    def _publish_about(self) -> None:
        assignment = self.control.assignment
        about = About(
            session=self.config.session,
            run=self.control.run,
            t_ns=self.control.clock.now_ns(),
            origin=assignment.origin,
            label=assignment.label,
            model=self.named(self._predictor.id),
            config=published_config(self.config),
            versions=versions(),
            modalities=tuple(self._predictor.specs.values()),
        )
        self._publisher.send(encode_about(about))

    def _drops(self) -> dict[str, int]:
        """What was not used or did not arrive, by cause."""
        drops = Counter(self.assembler.drops) + self.refusals.counts
        drops.update(self.dropped)
        drops["unread"] = self._publisher.dropped
        drops["unknown_key"] = self._publisher.refused
        drops["subscription_flood"] = self._publisher.subscription_flood_resets
        return {cause: count for cause, count in drops.items() if count}
