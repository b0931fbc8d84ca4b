"""The inference process: features in, rolling predictions out."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import zmq

from mien.clock import NS_PER_MS, NS_PER_S
from mien.config import Config
from mien.engines.predictor import Predictor
from mien.errors import ConfigError, WireError
from mien.messages import About, Cue, FeatureWindow, Prediction, Status, Transcript, Window, WorkerState
from mien.models.checkpoint import load_checkpoint
from mien.stream.about import published_config, versions
from mien.stream.assembler import Assembler
from mien.stream.bus.clock_exchange import ClockExchange
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import (
    decode_cue,
    decode_features,
    decode_status,
    encode_about,
    encode_prediction,
    encode_status,
    topic,
)
from mien.stream.faults import Faults
from mien.stream.modality import WORKERS
from mien.stream.monitoring.meter import RateMeter, ResourceMeter
from mien.stream.process import Control
from mien.stream.schedule import CompleteSchedule, CueSchedule, LiveSchedule, Trigger, spans_of

_STATUS_INTERVAL_S = 1.0
_AHEAD_NS = 2 * NS_PER_S  # of a clip in full: how far the quickest worker may be ahead of the slowest


def infer(control: Control, others: Sequence[Config] = ()) -> None:
    """Run inference until all clips have ended or it is told to stop.

    Args:
        others: further sessions, with workers of their own, that are predicted by the same process and model and
            published on the same socket.

    Raises:
        ConfigError: two sessions have one name, or one worker.
        MienError: the checkpoint, the engine or the port is not to be had.
    """
    config = control.assignment.config
    _check_apart([config, *others])
    publisher = Publisher(config.bus.endpoint("inference"), config.bus, lossless=config.clip.fast)
    try:
        checkpoint = load_checkpoint(config.inference.checkpoint)
        predictor = Predictor(checkpoint, config.inference.engine, config.inference.precision)
        controls = [control, *(control.sibling(other) for other in others)]
        _serve(control, publisher, [_Stream(each, publisher, predictor) for each in controls])
    finally:
        publisher.close()


def _check_apart(configs: Sequence[Config]) -> None:
    for what, used in (
        ("the name", [config.session for config in configs]),
        ("the address of a worker", [config.bus.address(worker) for config in configs for worker in WORKERS]),
    ):
        twice = [value for value, count in Counter(used).items() if count > 1]
        if twice:
            raise ConfigError(f"two sessions have {what} {twice[0]!r}; give each its own `session` and `bus.port`")


def _serve(control: Control, publisher: Publisher, streams: Sequence[_Stream]) -> None:
    """Predict all streams, turn by turn."""
    config = control.assignment.config
    poller = zmq.Poller()
    poller.register(publisher.socket, zmq.POLLIN)
    try:
        for stream in streams:
            stream.open(poller)
        # What is loaded by now stays; scanning it again and again would only add to the slowest predictions.
        gc.collect()
        gc.freeze()
        for stream in streams:
            stream.announce()
        wait_ms = 1 if config.clip.fast else min(config.inference.hop_ms, 50)
        while not control.stopping.is_set():
            control.beat()
            poller.poll(wait_ms)
            publisher.service()
            for stream in streams:
                stream.step()
        for stream in streams:
            stream.publish_status("stopped")
    finally:
        for stream in streams:
            stream.close()


class _Stream:
    """One session: its workers' messages in, its predictions out."""

    def __init__(self, control: Control, publisher: Publisher, predictor: Predictor) -> None:
        config = control.assignment.config
        self._control = control
        self._config = config
        self._clock = control.clock
        self._publisher = publisher
        self._predictor = predictor
        self._workers = control.assignment.workers or tuple(WORKERS)
        self._assembler = Assembler(predictor.specs, config.inference.max_age_ms)
        for modality in predictor.specs:
            if modality not in (WORKERS[worker] for worker in self._workers):
                self._assembler.explanations[modality] = control.assignment.absent.get(modality, "not captured")
        self._fast = config.clip.fast
        self._cued = CueSchedule() if control.assignment.origin == "replay" else None
        self._taken_in: dict[str, list[tuple[int, int]]] = {}
        self._live = LiveSchedule(config.inference.max_hz, config.inference.hop_ms, config.inference.max_age_ms)
        self._complete = CompleteSchedule([WORKERS[worker] for worker in self._workers], config.inference.max_hz)
        self._receivers: dict[str, Receiver] = {}
        self._exchanges: dict[str, ClockExchange] = {}
        self._ended: set[str] = set()
        self._faults = Faults()
        self._absent: dict[str, str] = {}
        self._refused: Counter[str] = Counter()
        self._last_error: str | None = None
        self._smoothed: float | None = None
        self._smoothed_at_ns = 0
        self._seq = 0
        self._meter = RateMeter()
        self._resources = ResourceMeter()
        self._state: WorkerState = "starting"
        self._reported_s = 0.0

    def open(self, poller: zmq.Poller) -> None:
        """Connect to the workers."""
        session = self._config.session
        prefixes = tuple(topic(kind, session) for kind in ("features", "status", "cue"))
        for worker in self._workers:
            self._receivers[worker] = Receiver(
                self._config.bus.address(worker),
                prefixes,
                self._config.bus.high_water_mark,
                self._config.bus.keys,
            )
            if self._is_elsewhere(worker):
                self._exchanges[worker] = ClockExchange(self._receivers[worker], session, self._clock)
            poller.register(self._receivers[worker].socket, zmq.POLLIN)

    def announce(self) -> None:
        """Say that it is ready, and for what."""
        self._publish_about()
        self.publish_status("ready")
        self._control.say("ready", model=self._predictor.id)

    def step(self) -> None:
        """Take in what has come, and predict what is due."""
        self._obey()
        for exchange in self._exchanges.values():
            exchange.tick()
        self._receive()
        self._predict_due()
        if self._state != "ended" and self._workers_ended():
            self._predict_last()
            self.publish_status("ended")
            self._control.say("ended", predictions=self._seq)
            self._state = "ended"
        if time.monotonic() - self._reported_s >= _STATUS_INTERVAL_S:
            self.publish_status(self._state if self._state == "ended" else "running")

    def close(self) -> None:
        """Disconnect."""
        for receiver in self._receivers.values():
            receiver.close()

    def _receive(self) -> None:
        for worker, receiver in self._receivers.items():
            if self._fast and self._cued is None and self._is_ahead(worker):
                continue
            for frames in receiver.drain(32 if self._fast else 256):
                received_ns = self._clock.now_ns()
                try:
                    if frames[0].startswith(b"status/"):
                        status = decode_status(frames)
                        self._check_sender(worker, status.worker)
                        self._hear_status(status, frames)
                    elif frames[0].startswith(b"cue/"):
                        self._hear_cue(decode_cue(frames))
                    elif frames[0].startswith(b"clock/"):
                        if worker in self._exchanges:
                            self._exchanges[worker].hear(frames, received_ns)
                    else:
                        message = decode_features(frames)
                        self._check_sender(worker, message.modality)
                        self._hear_features(self._in_our_time(worker, message), received_ns)
                except WireError as error:
                    self._refused[str(error).split(":")[0]] += 1
                    self._last_error = f"refused a message from {receiver.endpoint}: {error}"

    def _is_elsewhere(self, worker: str) -> bool:
        """Whether a worker has a clock of its own: those of one supervisor share one."""
        return not self._fast and (not self._control.supervised or bool(getattr(self._config.bus.workers, worker, "")))

    def _in_our_time(self, worker: str, message: FeatureWindow) -> FeatureWindow:
        exchange = self._exchanges.get(worker)
        if exchange is None:
            return message
        ours = exchange.to_ours(message)
        if ours is None:
            raise WireError(f"unsynchronised: the clock of the {worker} worker is not known yet")
        return ours

    def _clock_offsets(self) -> dict[str, float]:
        """Per worker with a clock of its own, how far that is ahead of ours, and how wrong this can be, in ms."""
        detail = {}
        for worker, exchange in self._exchanges.items():
            estimate = exchange.estimate()
            if estimate is not None:
                detail[f"{worker}.clock_offset_ms"] = round(estimate[0] / NS_PER_MS, 3)
                detail[f"{worker}.clock_error_ms"] = round(estimate[1] / NS_PER_MS, 3)
        return detail

    def _check_sender(self, worker: str, said: str) -> None:
        """A process speaks for itself: what it says of others could silence them."""
        if said not in (worker, WORKERS[worker]) and self._cued is None:
            raise WireError(f"foreign: the {worker} worker does not speak for {said}")

    def _hear_features(self, message: FeatureWindow, received_ns: int) -> None:
        if self._cued is not None:
            self._cued.hear(message)
            return
        if not self._push(message, None if self._fast else received_ns):
            return
        (self._complete if self._fast else self._live).hear(message, received_ns)

    def _push(self, message: FeatureWindow, received_ns: int | None) -> bool:
        if not self._assembler.push(message, received_ns):
            self._last_error = self._assembler.last_refusal
            return False
        self._taken_in.setdefault(message.modality, []).append((message.run, message.seq))
        self._faults.hear(message.modality, message.run)
        return True

    def _hear_cue(self, cue: Cue) -> None:
        if self._cued is None:
            raise WireError("malformed: a cue, but this is no replay")
        self._cued.cue(cue)

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
            self._assembler.explanations[modality] = "the clip has ended"
        else:
            self._assembler.explanations.pop(modality, None)
        if status.state == "ended":
            self._ended.add(status.worker)
            self._complete.end(modality)
        else:
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
            WORKERS[worker]: self._assembler.watermark_ns(WORKERS[worker])
            for worker in self._workers
            if worker not in self._ended
        }

    def _workers_ended(self) -> bool:
        if self._cued is not None:
            return self._cued.finished
        everybody = self._ended.issuperset(self._workers)
        return everybody and (not self._fast or self._complete.finished)

    def _predict_due(self) -> None:
        if self._state == "ended" or not self._control.started.is_set():
            return
        if self._cued is not None:
            while (due := self._cued.due(self._clock.now_ns())) is not None:
                self._predict_cued(*due)
            return
        if not self._fast:
            trigger = self._live.due(self._clock.now_ns())
            if trigger is not None and not self._workers_ended():
                self._predict(trigger)
            return
        while (trigger := self._complete.due(self._open_watermarks())) is not None:
            self._predict(trigger)

    def _predict_last(self) -> None:
        """Every clip ends with a prediction that has seen all of it: the last words are committed at its very end."""
        if self._cued is not None:
            return  # the recording has it
        marks = [self._assembler.watermark_ns(WORKERS[worker]) for worker in self._workers]
        end_ns = max((mark for mark in marks if mark is not None), default=None)
        if end_ns is not None:
            self._predict(Trigger(end_ns))

    def _predict_cued(self, cue: Cue, messages: list[FeatureWindow]) -> None:
        """Predict as it was done when the recording was made: from the same messages, for the same instant."""
        if cue.reset:
            self._assembler = Assembler(self._predictor.specs, self._config.inference.max_age_ms)
            self._smoothed = None
        if cue.smoothed is not None:
            self._smoothed, self._smoothed_at_ns = cue.smoothed
        for message in messages:
            self._push(message, None)
        self._assembler.faults = dict(cue.absent)
        self._predict(Trigger(cue.t_end_ns))

    def _predict(self, trigger: Trigger) -> None:
        if self._cued is None:
            self._assembler.faults = self._faults.reasons()
        window = self._assembler.window(self._config.session, trigger.t_end_ns)
        if window.absent.keys() != self._absent.keys() and self._cued is None:
            self._absent = dict(window.absent)
            self.publish_status("running" if self._state == "ready" else self._state)
        began_ns = self._clock.now_ns()
        prediction = self._evaluate(window)
        done_ns = self._clock.now_ns()
        prediction = _with_latency(prediction, trigger, began_ns, done_ns, fast=self._fast)
        self._publisher.send(encode_prediction(prediction))
        self._taken_in.clear()
        self._seq += 1
        self._meter.tick()

    def _evaluate(self, window: Window) -> Prediction:
        words = window.words
        observed = any(mask.any() for mask in window.mask.values())
        outputs = self._predictor.predict(window) if observed else None
        if outputs is not None and not math.isfinite(outputs.sentiment):
            self._refused["nonfinite_output"] += 1
            self._last_error = "the model gave a number that is not finite; no prediction was made from it"
            outputs = None
        return Prediction(
            session=window.session,
            run=self._control.run,
            seq=self._seq,
            t_end_ns=window.t_end_ns,
            sentiment=outputs.sentiment if outputs else None,
            sentiment_smooth=self._smooth(outputs.sentiment, window.t_end_ns) if outputs else None,
            emotions=outputs.emotions if outputs else None,
            confidence=outputs.confidence if outputs else None,
            gates=outputs.gates if outputs else dict.fromkeys(window.mask, 0.0),
            age_ms=window.age_ms,
            absent=window.absent,
            abstains=None if outputs else "no face, no voice and no words in the window",
            transcript=Transcript(
                " ".join(word.text for word in words if word.committed),
                " ".join(word.text for word in words if not word.committed),
            ),
            words=words,
            model=self._predictor.id,
            inputs=spans_of(self._taken_in),
        )

    def _smooth(self, sentiment: float, t_ns: int) -> float:
        tau_ns = self._config.inference.smoothing_s * NS_PER_S
        elapsed_ns = t_ns - self._smoothed_at_ns
        if self._smoothed is None or tau_ns == 0 or not 0 <= elapsed_ns < 10 * tau_ns:
            self._smoothed = sentiment
        else:
            self._smoothed += (1.0 - math.exp(-elapsed_ns / tau_ns)) * (sentiment - self._smoothed)
        self._smoothed_at_ns = t_ns
        return self._smoothed

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
        schedule = self._complete if self._fast else self._live
        drops = +(Counter(self._assembler.drops) + self._refused)
        if schedule.skipped:
            drops["superseded"] = schedule.skipped
        if self._cued is not None and self._cued.lost:
            drops["lost"] += self._cued.lost
        if self._publisher.dropped:
            drops["unread"] = self._publisher.dropped
        if self._publisher.refused:
            drops["unknown_key"] = self._publisher.refused
        if self._publisher.shaken_off:
            drops["subscription_flood"] = self._publisher.shaken_off
        self._publisher.send(
            encode_status(
                Status(
                    session=self._config.session,
                    worker="inference",
                    run=self._control.run,
                    t_ns=self._clock.now_ns(),
                    state=state,
                    pid=self._resources.pid,
                    fps=self._meter.rate(),
                    drops=dict(drops),
                    last_error=self._last_error or self._predictor.trouble,
                    cpu_percent=cpu_percent,
                    rss_mb=rss_mb,
                    detail={
                        "model": self._predictor.id,
                        "engine": self._predictor.reason,
                        "predictions": self._meter.total,
                        "origin": self._control.assignment.origin,
                        **self._clock_offsets(),
                        **{f"absent.{modality}": reason for modality, reason in self._absent.items()},
                    },
                    next_seq=self._seq,
                )
            )
        )


def _with_latency(prediction: Prediction, trigger: Trigger, began_ns: int, done_ns: int, *, fast: bool) -> Prediction:
    """The prediction with its stages in ms. A clip played in full has no capture times to count from."""
    stages = {"infer": (done_ns - began_ns) / NS_PER_MS}
    if not fast and trigger.read_ns and trigger.sent_ns and trigger.received_ns:
        stages = {
            "capture": (trigger.read_ns - trigger.t_end_ns) / NS_PER_MS,
            "feature": (trigger.sent_ns - trigger.read_ns) / NS_PER_MS,
            "transport": (trigger.received_ns - trigger.sent_ns) / NS_PER_MS,
            "wait": (began_ns - trigger.received_ns) / NS_PER_MS,
            **stages,
            "total": (done_ns - trigger.read_ns) / NS_PER_MS,
        }
    return msgspec.structs.replace(prediction, latency=stages)
