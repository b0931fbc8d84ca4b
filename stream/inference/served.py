"""One session as the inference process serves it: what comes in, when to predict, and what goes out."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import zmq

from mien.clock import NS_PER_S
from mien.engines.predictor import Outputs, Predictor
from mien.messages import About, Cue, FeatureWindow, Status, Window, WorkerState
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_about, encode_prediction, encode_status
from mien.stream.inference.about import published_config, versions
from mien.stream.inference.assembler import Assembler
from mien.stream.inference.decision import Decider, with_latency
from mien.stream.inference.faults import Faults
from mien.stream.inference.inbox import Inbox
from mien.stream.inference.refusals import Refusals
from mien.stream.inference.schedule import CompleteSchedule, CueSchedule, LiveSchedule, Trigger, spans_of
from mien.stream.modality import WORKERS
from mien.stream.monitoring.meter import RateMeter, ResourceMeter
from mien.stream.process import Control

_STATUS_INTERVAL_S = 1.0
_AHEAD_NS = 2 * NS_PER_S  # of a clip in full: how far the quickest worker may be ahead of the slowest
_AT_ONCE = 256  # messages of a worker that are taken in before anything is predicted
_AT_ONCE_IN_FULL = 32


@dataclass(frozen=True)
class Due:
    """An instant, and what was observed until then."""

    trigger: Trigger
    window: Window

    @property
    def is_observed(self) -> bool:
        """Whether there is anything to predict from."""
        return any(mask.any() for mask in self.window.mask.values())


class Served:
    """A session: its workers' messages in, its predictions out.

    Args:
        control: the process's view of it.
        publisher, predictor: shared with other sessions.
    """

    def __init__(self, control: Control, publisher: Publisher, predictor: Predictor) -> None:
        config = control.assignment.config
        self._control = control
        self._config = config
        self._clock = control.clock
        self._publisher = publisher
        self._predictor = predictor
        self._workers = control.assignment.workers or tuple(WORKERS)
        self._fast = config.clip.fast
        self._cued = CueSchedule() if control.assignment.origin == "replay" else None
        self._refusals = Refusals()
        self._inbox = Inbox(
            config,
            self._workers,
            control.clock,
            self._refusals,
            supervised=control.supervised,
            replayed=self._cued is not None,
        )
        self._assembler = self._new_assembler()
        for modality in predictor.specs:
            if modality not in (WORKERS[worker] for worker in self._workers):
                self._assembler.explanations[modality] = control.assignment.absent.get(modality, "not captured")
        self._live = LiveSchedule(config.inference.max_hz, config.inference.hop_ms, config.inference.max_age_ms)
        self._complete = CompleteSchedule(
            [WORKERS[worker] for worker in self._workers], config.inference.max_hz, config.inference.max_age_ms
        )
        self._decider = Decider(predictor, config.inference.smoothing_s, control.run, self._refusals)
        self._faults = Faults()
        self._absent: dict[str, str] = {}
        self._ended: set[str] = set()
        self._said_last = False
        self._taken_in: dict[str, list[tuple[int, int]]] = {}
        self._seq = 0
        self._meter = RateMeter()
        self._resources = ResourceMeter()
        self._state: WorkerState = "starting"
        self._reported_s = 0.0

    def open(self, poller: zmq.Poller) -> None:
        """Connect to the workers."""
        self._inbox.open(poller)

    def announce(self) -> None:
        """Say that it is ready, and for what."""
        self._publish_about()
        self.publish_status("ready")
        self._control.say("ready", model=self._predictor.id)

    def take_in(self) -> None:
        """What the supervisor says, and what the workers have sent."""
        self._obey()
        self._inbox.tick()
        self._hear_workers()

    def due(self) -> Due | None:
        """What is to be predicted now, if anything; the next one once this is published."""
        if self._state == "ended" or not self._control.started.is_set():
            return None
        trigger = self._trigger()
        if trigger is None and not self._said_last and self._workers_ended():
            self._said_last = True
            trigger = self._last_trigger()
        return self._look(trigger) if trigger is not None else None

    def publish(self, due: Due, outputs: Outputs | None, began_ns: int, done_ns: int) -> None:
        """The prediction of what was due.

        Args:
            outputs: what the model says; None where nothing was observed.
            began_ns, done_ns: when the model was asked, and when it had answered.
        """
        prediction = self._decider.decide(due.window, outputs, self._seq, spans_of(self._taken_in))
        prediction = with_latency(prediction, due.trigger, began_ns, done_ns, fast=self._fast)
        self._publisher.send(encode_prediction(prediction))
        self._taken_in.clear()
        self._seq += 1
        self._meter.tick()

    def settle(self) -> None:
        """Say that all is said, once it is; and now and then how this is."""
        if self._state != "ended" and self._said_last:
            self.publish_status("ended")
            self._control.say("ended", predictions=self._seq)
        if time.monotonic() - self._reported_s >= _STATUS_INTERVAL_S:
            self.publish_status(self._state if self._state == "ended" else "running")

    def close(self) -> None:
        """Disconnect."""
        self._inbox.close()

    def _new_assembler(self) -> Assembler:
        return Assembler(self._predictor.specs, self._config.inference.max_age_ms)

    def _hear_workers(self) -> None:
        for worker in self._workers:
            if self._fast and self._cued is None and self._is_ahead(worker):
                continue
            for message, frames, received_ns in self._inbox.take(worker, _AT_ONCE_IN_FULL if self._fast else _AT_ONCE):
                if isinstance(message, Status):
                    self._hear_status(message, frames)
                elif self._cued is not None:
                    self._cued.cue(message) if isinstance(message, Cue) else self._cued.hear(message)
                elif isinstance(message, FeatureWindow):
                    self._hear_features(message, received_ns)

    def _hear_features(self, message: FeatureWindow, received_ns: int) -> None:
        if self._fast:
            self._complete.hear(message, received_ns)
        elif self._push(message, received_ns):
            self._live.hear(message, received_ns)

    def _push(self, message: FeatureWindow, received_ns: int | None) -> bool:
        if not self._assembler.push(message, received_ns):
            self._refusals.last = self._assembler.last_refusal
            return False
        self._taken_in.setdefault(message.modality, []).append((message.run, message.seq))
        self._faults.hear(message.modality, message.run)
        return True

    def _hear_status(self, status: Status, frames: list[bytes]) -> None:
        self._publisher.send(frames)
        if self._cued is not None:
            return  # a recorded one, for those who watch; what it meant for a prediction is in the prediction's cue
        modality = WORKERS.get(status.worker)
        if modality is None or modality not in self._assembler.specs:
            return
        if status.state in ("degraded", "failed", "stopped"):
            self._faults.say(modality, status.last_error or status.state)
            self._live.lose(modality)
        else:
            self._faults.say(modality, None)
        if status.state == "ended":
            self._assembler.explanations[modality] = status.last_error or "the clip has ended"
            self._ended.add(status.worker)
            self._complete.end(modality)
        else:
            self._assembler.explanations.pop(modality, None)
            self._ended.discard(status.worker)

    def _obey(self) -> None:
        """What the supervisor says: statuses to publish, and which processes are not well."""
        for order in self._control.take_orders():
            if order.status is not None:
                self._publisher.send(encode_status(order.status))
            modality = WORKERS.get(order.worker or "")
            if modality is None:
                continue
            if order.fault is None:
                self._faults.answers(modality)
            else:
                self._faults.blame(modality, order.fault, dead=order.dead)
                self._live.lose(modality)

    def _is_ahead(self, worker: str) -> bool:
        marks = self._open_watermarks()
        slowest_ns = min((mark or 0 for mark in marks.values()), default=0)
        return (marks.get(WORKERS[worker]) or 0) > slowest_ns + _AHEAD_NS

    def _open_watermarks(self) -> dict[str, int | None]:
        return {
            WORKERS[worker]: self._complete.watermark_ns(WORKERS[worker])
            for worker in self._workers
            if worker not in self._ended
        }

    def _workers_ended(self) -> bool:
        if self._cued is not None:
            return self._cued.finished
        everybody = self._ended.issuperset(self._workers)
        return everybody and (not self._fast or self._complete.finished)

    def _trigger(self) -> Trigger | None:
        if self._cued is not None:
            cued = self._cued.due(self._clock.now_ns())
            return self._follow(*cued) if cued is not None else None
        if self._fast:
            complete = self._complete.due(self._open_watermarks())
            for message in self._complete.take(complete.t_end_ns) if complete is not None else ():
                self._push(message, None)
            return complete
        trigger = self._live.due(self._clock.now_ns())
        return trigger if not self._workers_ended() else None

    def _last_trigger(self) -> Trigger | None:
        """Every clip ends with a prediction that has seen all of it: the last words are committed at its very end."""
        if self._cued is not None:
            return None  # the recording has it
        for message in self._complete.take(None):
            self._push(message, None)
        marks = [self._assembler.watermark_ns(WORKERS[worker]) for worker in self._workers]
        end_ns = max((mark for mark in marks if mark is not None), default=None)
        return Trigger(end_ns) if end_ns is not None else None

    def _follow(self, cue: Cue, messages: list[FeatureWindow]) -> Trigger:
        """As it was done when the recording was made: from the same messages, for the same instant."""
        if cue.reset:
            self._assembler = self._new_assembler()
            self._decider.smoothed = None
        if cue.smoothed is not None:
            self._decider.smoothed = cue.smoothed
        for message in messages:
            self._push(message, None)
        self._assembler.faults = dict(cue.absent)
        return Trigger(cue.t_end_ns)

    def _look(self, trigger: Trigger) -> Due:
        if self._cued is None:
            self._assembler.faults = self._faults.reasons()
        window = self._assembler.window(self._config.session, trigger.t_end_ns)
        if window.absent.keys() != self._absent.keys() and self._cued is None:
            self._absent = dict(window.absent)
            self.publish_status("running" if self._state == "ready" else self._state)
        return Due(trigger, window)

    def _publish_about(self) -> None:
        assignment = self._control.assignment
        about = About(
            session=self._config.session,
            run=self._control.run,
            t_ns=self._clock.now_ns(),
            origin=assignment.origin,
            label=assignment.label,
            model=self._predictor.id,
            config=published_config(self._config),
            versions=versions(),
            modalities=tuple(self._predictor.specs.values()),
        )
        self._publisher.send(encode_about(about))

    def publish_status(self, state: WorkerState) -> None:
        """Say how this session's inference is."""
        self._state, self._reported_s = state, time.monotonic()
        cpu_percent, rss_mb = self._resources.read()
        status = Status(
            session=self._config.session,
            worker="inference",
            run=self._control.run,
            t_ns=self._clock.now_ns(),
            state=state,
            pid=self._resources.pid,
            fps=self._meter.rate(),
            drops=self._drops(),
            last_error=self._refusals.last or self._predictor.trouble,
            cpu_percent=cpu_percent,
            rss_mb=rss_mb,
            detail={
                "model": self._predictor.id,
                "engine": self._predictor.reason,
                "predictions": self._meter.total,
                "origin": self._control.assignment.origin,
                **self._inbox.clock_offsets(),
                **{f"absent.{modality}": reason for modality, reason in self._absent.items()},
            },
            next_seq=self._seq,
        )
        self._publisher.send(encode_status(status))

    def _drops(self) -> dict[str, int]:
        """What was not used or did not arrive, by cause."""
        drops = Counter(self._assembler.drops) + self._refusals.counts
        drops["superseded"] = (self._complete if self._fast else self._live).skipped
        drops["lost"] += self._cued.lost if self._cued is not None else 0
        drops["unread"] = self._publisher.dropped
        drops["unknown_key"] = self._publisher.refused
        drops["subscription_flood"] = self._publisher.shaken_off
        return {cause: count for cause, count in drops.items() if count}
