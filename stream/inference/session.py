"""One session as the inference process serves it: what comes in, and what goes out. When to predict: `modes`."""

from __future__ import annotations

import time
from collections import Counter, deque

import numpy as np
import zmq

from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.messages import WORKERS, About, Status, WorkerState
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import encode_about, encode_prediction, encode_status
from mien.stream.inference.about import person_tag, published_config, versions, with_person
from mien.stream.inference.inbox import Inbox
from mien.stream.inference.modes import Mode
from mien.stream.inference.postprocess import Answer
from mien.stream.inference.refusals import Refusals
from mien.stream.inference.schedule import Trigger
from mien.stream.monitoring.meter import RateMeter, ResourceMeter, StepMeter
from mien.stream.processes.control import Control, Order

_STATUS_INTERVAL_S = 1.0
_RECENT = 300  # predictions whose latency a status sums up


class Session:
    """A session: its workers' messages in, its predictions out.

    Args:
        control: the process's view of it. mode: how it is served.
        publisher, predictor, windows, resources, steps: shared with other sessions.

    Attributes:
        mode: when to predict, and from what. reported_s: when it last said how it is.
    """

    def __init__(
        self,
        control: Control,
        mode: type[Mode],
        publisher: Publisher,
        predictor: Predictor,
        windows: Windows,
        resources: ResourceMeter,
        steps: StepMeter,
    ) -> None:
        config = control.assignment.config
        self.control = control
        self.config = config
        self.refusals = Refusals()
        self.reported_s = 0.0
        self._publisher, self._predictor, self._resources, self._steps = publisher, predictor, resources, steps
        workers = control.assignment.workers or tuple(WORKERS)
        self.mode = mode(
            config, workers, control.assignment.absent, predictor.specs, windows, control.run, self.refusals
        )
        self._inbox = Inbox(
            config,
            workers,
            control.clock,
            self.refusals,
            supervised=control.supervised and not control.assignment.endpoint,
            replayed=mode.replayed,
        )
        self._absent: dict[str, str] = {}  # as it was said last
        self._next_seq = 0
        self._tag = person_tag(config, replayed=mode.replayed)
        self._totals_ms: deque[float] = deque(maxlen=_RECENT)
        self._meter = RateMeter()
        self._state: WorkerState = "starting"

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
        if self.mode.holds_back(worker):
            return
        for message, frames, received_ns in self._inbox.take(worker, self.mode.at_once):
            if isinstance(message, Status):
                self._publisher.send(frames)
                self.mode.note_status(message)
            else:
                self.mode.take(message, received_ns)

    @property
    def is_on(self) -> bool:
        """Whether it has begun and not ended."""
        return self._state != "ended" and self.control.started.is_set()

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
        """The message of a prediction of what was due; arguments as for `Mode.predicted`."""
        prediction = self.mode.predicted(trigger, answer, present, newest_ns, self.named(model), began_ns, done_ns)
        if not self.mode.replayed and self.mode.absent.keys() != self._absent.keys():
            self._absent = self.mode.absent
            self.publish_status("running" if self._state == "ready" else self._state)
        self._next_seq = self.mode.seq  # only now: a status that is heard before the prediction would call it lost
        self._totals_ms.append(prediction.latency.get("total", 0.0))
        self._meter.tick()
        if self._publisher.parts:
            self._publisher.send_parts(prediction)
        return encode_prediction(prediction)

    def settle(self) -> None:
        """Look after the connections; say that all is said, once it is, and now and then how this is."""
        self._inbox.tend()
        if self._state != "ended" and self.mode.is_over:
            self.publish_status("ended")
            self.control.say("ended", predictions=self.mode.seq)
        if time.monotonic() - self.reported_s >= _STATUS_INTERVAL_S:
            self.publish_status(self._state if self._state == "ended" else "running")

    def ask_time(self) -> int:
        """Ask for the time where it is not ours, if it is time to. Returns when it is time again."""
        return self._inbox.ask()

    def close(self) -> None:
        """Disconnect."""
        self._inbox.close()

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
            next_seq=self._next_seq,
        )
        self._publisher.send(encode_status(status))

    def obey(self, order: Order) -> None:
        """What the supervisor says: a status to publish, or which process is not well."""
        if order.status is not None:
            self._publisher.send(encode_status(order.status))
        modality = WORKERS.get(order.worker or "")
        if modality is not None:
            self.mode.note_fault(modality, order.fault, dead=order.dead)

    def named(self, model: str) -> str:
        """Checkpoint and engine, and whose rest this session's rows are compared with."""
        return with_person(model, self._tag)

    def _latency(self) -> dict[str, float]:
        """Of the newest predictions, from frame read to published, in ms."""
        if not self._totals_ms or not self.mode.captured:
            return {}
        p50, p99 = np.percentile(self._totals_ms, (50, 99))
        return {"latency_p50_ms": round(float(p50), 2), "latency_p99_ms": round(float(p99), 2)}

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
        drops = Counter(self.mode.assembler.drops) + self.refusals.counts
        drops.update(self.mode.dropped)
        drops["unread"] = self._publisher.dropped
        drops["unknown_key"] = self._publisher.refused
        drops["subscription_flood"] = self._publisher.subscription_flood_resets
        return {cause: count for cause, count in drops.items() if count}
