"""One session of the inference process: its input and output. `prediction` decides when to predict.

Messages of its workers are decoded, checked for a permitted sender, and converted to our clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection

import zmq

from mien.clock import NS_PER_MS, Clock
from mien.config import Config
from mien.engines.predictor import Answer, Predictor
from mien.engines.rings import Windows
from mien.errors import WireError
from mien.messages import WORKERS, About, Cue, FeatureWindow, Status, WorkerState
from mien.stream.bus.clock_exchange import ClockExchange
from mien.stream.bus.poller import Poller
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import (
    decode_cue,
    decode_feature_header,
    decode_status,
    encode_about,
    encode_prediction,
    encode_status,
    features_of,
    topic,
)
from mien.stream.inference.about import person_tag, published_config, versions, with_person
from mien.stream.inference.prediction import Asked, Evidence, Mode, Trigger
from mien.stream.monitoring.meter import RateMeter, ResourceMeter, StepMeter
from mien.stream.processes.control import Control, Order

NEVER_NS = (1 << 63) - 1
_STATUS_INTERVAL_S = 1.0
_RECENT = 300  # predictions over which a status summarises latency


Message = FeatureWindow | Status | Cue


class Inbox:
    """The connections to a session's workers.

    Args:
        refuse: called with the cause of a rejected message, and an explanation.
        supervised: whether the workers of this machine share our clock.
        replayed: whether the sender is a player, which sends for all workers, and sends cues.
    """

    def __init__(
        self,
        config: Config,
        workers: Collection[str],
        clock: Clock,
        refuse: Callable[[str, str], object],
        *,
        supervised: bool,
        replayed: bool,
    ) -> None:
        self._config, self._workers, self._clock, self._refuse = config, workers, clock, refuse
        self._supervised, self._replayed = supervised, replayed
        self._receivers: dict[str, Receiver] = {}
        self._exchanges: dict[str, ClockExchange] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        self._foreign: dict[str, str] = {}  # workers of another session

    def open(self, poller: Poller) -> dict[zmq.Socket[bytes], str]:
        """Connect to the workers; returns each one's sockets."""
        session, bus = self._config.session, self._config.bus
        # Statuses of any session: a worker of another one is told from a silent one.
        prefixes = topic("features", session), b"status/", topic("cue", session)
        for worker in self._workers:
            receiver = Receiver(bus.address(worker), prefixes, bus.high_water_mark, bus.keys)
            self._receivers[worker] = receiver
            if self._is_elsewhere(worker):
                self._exchanges[worker] = ClockExchange(receiver, session, self._clock)
        # Only now: where one cannot be connected to, the poller knows of none.
        self._poller = poller
        for receiver in self._receivers.values():
            poller.register(receiver.socket)
        return {receiver.socket: worker for worker, receiver in self._receivers.items()}

    def close(self) -> None:
        for receiver in self._receivers.values():
            receiver.close()

    def tend(self) -> dict[str, str | None]:
        """Maintain the connections, if due. Returns for each worker why nothing comes from it, as far as is known."""
        for receiver in self._receivers.values():
            receiver.tend()
        return {worker: receiver.trouble or self._foreign.get(worker) for worker, receiver in self._receivers.items()}

    def ask(self) -> int:
        """Ask workers with clocks of their own for the time, if it is time to. Returns when it is time again."""
        for worker, exchange in self._exchanges.items():
            if exchange.tick():
                self._poller.doubt(self._receivers[worker].socket)
        return min((exchange.due_ns for exchange in self._exchanges.values()), default=NEVER_NS)

    def receiver_of(self, worker: str) -> Receiver:
        """What receives a worker's messages, to be read with `read`."""
        return self._receivers[worker]

    def read(self, worker: str, frames: list[bytes], received_ns: int) -> Message | None:
        """A message from a worker, if it says something new; an invalid one is counted."""
        try:
            if not frames[0].startswith(b"features/"):
                return self._read_other(worker, frames, received_ns)
            header, payload = decode_feature_header(frames)
            modality, number = header.modality, (header.run, header.seq)
            if modality != WORKERS[worker]:
                self._check_sender(worker, modality)
            if self._newest.get(modality) == number:
                return None  # sent again, for another new subscriber, as the protocol says
            self._newest[modality] = number
            exchange = self._exchanges.get(worker)
            by_ns = exchange.to_local_ns(header.run) if exchange is not None else 0
            if by_ns is None:
                raise WireError(f"unsynchronised: the clock of the {worker} worker is not known yet")
            return features_of(header, payload, by_ns)
        except WireError as error:
            endpoint = self._receivers[worker].endpoint
            self._refuse(str(error).split(":")[0], f"refused a message from {endpoint}: {error}")
            return None

    def clock_offsets(self) -> dict[str, float]:
        """For each worker with another clock, its offset from ours (positive: ahead) and the maximum error, in ms."""
        detail = {}
        for worker, exchange in self._exchanges.items():
            estimate = exchange.estimate()
            if estimate is not None:
                detail[f"{worker}.clock_offset_ms"] = round(estimate[0] / NS_PER_MS, 3)
                detail[f"{worker}.clock_error_ms"] = round(estimate[1] / NS_PER_MS, 3)
        return detail

    def _read_other(self, worker: str, frames: list[bytes], received_ns: int) -> Status | Cue | None:
        kind = frames[0].partition(b"/")[0]
        if kind == b"cue":
            cue = decode_cue(frames)
            if not self._replayed:
                raise WireError("malformed: a cue, but this is no replay")
            return cue
        if kind == b"clock":
            if worker in self._exchanges:
                self._exchanges[worker].receive(frames, received_ns)
            return None
        status = decode_status(frames)
        self._check_sender(worker, status.worker)
        session, there = self._config.session, status.session
        if there != session:
            at = self._receivers[worker].endpoint
            self._foreign[worker] = (
                f"the {worker} worker at {at} is of session {there!r}, not {session!r}; see --session"
            )
            return None
        self._foreign.pop(worker, None)
        return status

    def _check_sender(self, worker: str, named: str) -> None:
        """A process may report only on itself: otherwise it could silence others."""
        if named not in (worker, WORKERS[worker]) and not self._replayed:
            raise WireError(f"foreign: the {worker} worker does not speak for {named}")

    def _is_elsewhere(self, worker: str) -> bool:
        """Whether a worker has another clock: those under one supervisor share one."""
        if self._config.clip.fast:
            return False
        return not self._supervised or bool(getattr(self._config.bus.workers, worker, ""))


class Session:
    """A session: its workers' messages in, its predictions out.

    Args:
        control: the process's view of it. mode: when and how to predict.
        publisher, predictor, windows, resources, steps: shared with other sessions.

    Attributes:
        mode: when to predict, and from what. inbox: the connections to its workers.
        reported_s: when its last status was published.
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
        self.reported_s = 0.0
        self._publisher, self._predictor, self._resources, self._steps = publisher, predictor, resources, steps
        workers = control.assignment.workers or tuple(WORKERS)
        self.mode = mode(config, workers, control.assignment.absent, predictor.specs, windows, control.run)
        self.inbox = Inbox(
            config,
            workers,
            control.clock,
            self.mode.assembler.refuse,
            supervised=control.supervised and not control.assignment.endpoint,
            replayed=mode.replayed,
        )
        self._absent: dict[str, str] = {}  # as last reported
        self._troubles: dict[str, str | None] = {}  # of connections, by modality
        self._next_seq = 0
        self._tag = person_tag(config, replayed=mode.replayed)
        self._totals_ms: deque[float] = deque(maxlen=_RECENT)
        self._meter = RateMeter()
        self._state: WorkerState = "starting"

    def announce(self) -> None:
        """Publish that it is ready, and its description."""
        self._publish_about()
        self.publish_status("ready")
        self.control.report_state("ready", model=self.named(self._predictor.id))

    def receive(self, worker: str) -> bool:
        """Take in what a worker has sent. Returns whether that was all."""
        if self.mode.holds_back(worker):
            return False
        receiver, mode = self.inbox.receiver_of(worker), self.mode
        for frames in receiver.drain(mode.at_once):
            received_ns = self.control.clock.now_ns()
            message = self.inbox.read(worker, frames, received_ns)
            if isinstance(message, Status):
                self._publisher.send(frames)
                mode.note_status(message)
            elif message is not None:
                mode.take(message, received_ns)
        return receiver.is_drained

    @property
    def is_on(self) -> bool:
        """Whether it has begun but not ended."""
        return self._state != "ended" and self.control.started.is_set()

    def predicted(
        self, trigger: Trigger, evidence: Evidence, answer: Answer, model: str, asked_ns: Asked
    ) -> list[bytes]:
        """The message of the prediction that was due; arguments as for `Mode.predicted`."""
        prediction = self.mode.predicted(trigger, evidence, answer, self.named(model), asked_ns)
        if not self.mode.replayed and self.mode.absent.keys() != self._absent.keys():
            self._absent = self.mode.absent
            self.publish_status("running" if self._state == "ready" else self._state)
        self._next_seq = self.mode.seq  # only now: a status received before the prediction would count it as lost
        self._totals_ms.append(prediction.latency.get("total", 0.0))
        self._meter.tick()
        if self._publisher.parts:
            self._publisher.send_parts(prediction)
        return encode_prediction(prediction)

    def settle(self) -> None:
        """Maintain the connections; publish the end of the session, and a periodic status."""
        for worker, trouble in self.inbox.tend().items():
            self._explain(WORKERS[worker], trouble)
        if self._state != "ended" and self.mode.is_over:
            self.publish_status("ended")
            self.control.report_state("ended", predictions=self.mode.seq)
        if time.monotonic() - self.reported_s >= _STATUS_INTERVAL_S:
            self.publish_status(self._state if self._state == "ended" else "running")

    def publish_status(self, state: WorkerState) -> None:
        """Publish a status of this session's inference."""
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
            last_error=self.mode.assembler.last_refusal or self._predictor.trouble,
            cpu_percent=cpu_percent,
            rss_mb=rss_mb,
            detail={
                "model": self.named(self._predictor.id),
                "engine": self._predictor.reason,
                "predictions": self._meter.total,
                **self._latency(),
                "origin": self.control.assignment.origin,
                **self.inbox.clock_offsets(),
                **{f"absent.{modality}": reason for modality, reason in self._absent.items()},
                **{f"us.{step}": average for step, average in self._steps.averages_us().items()},
            },
            next_seq=self._next_seq,
        )
        self._publisher.send(encode_status(status))

    def carry_out(self, order: Order) -> None:
        """Carry out the supervisor's order: publish a status, or note a process's fault."""
        if order.status is not None:
            self._publisher.send(encode_status(order.status))
        modality = WORKERS.get(order.worker or "")
        if modality is not None:
            self.mode.note_fault(modality, order.fault, dead=order.dead)

    def named(self, model: str) -> str:
        """Checkpoint and engine, with the tag of the person whose rest is this session's baseline."""
        return with_person(model, self._tag)

    def _explain(self, modality: str, trouble: str | None) -> None:
        """Say why nothing comes from a modality's worker, if its connection tells."""
        explanations, before = self.mode.assembler.explanations, self._troubles.get(modality)
        if trouble == before:
            return
        self._troubles[modality] = trouble
        if trouble is not None:
            explanations[modality] = trouble
        elif explanations.get(modality) == before:
            del explanations[modality]

    def _latency(self) -> dict[str, float]:
        """Latency of the newest predictions, from frame read to published, in ms."""
        if not self._totals_ms or not self.mode.captured:
            return {}
        # `np.percentile` took a twentieth of the time of a process with 256 sessions.
        ordered = sorted(self._totals_ms)
        p50, p99 = (ordered[round((len(ordered) - 1) * share)] for share in (0.5, 0.99))
        return {"latency_p50_ms": round(p50, 2), "latency_p99_ms": round(p99, 2)}

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
        """Messages not used or lost, by cause."""
        drops = +self.mode.assembler.drops
        drops.update(self.mode.dropped)
        drops.update(self._publisher.drops)
        return {cause: count for cause, count in drops.items() if count}
