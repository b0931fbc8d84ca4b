"""Replaying a recording: its inference settings, a check of its model, and a player in place of the workers."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

import msgspec
import zmq

from mien.clock import NS_PER_S
from mien.config import BusConfig, Config, InferenceConfig, PersonConfig
from mien.errors import CheckpointError, MienError, RecordingError, WireError, WorkerError
from mien.messages import WORKERS, Prediction
from mien.models.checkpoint import Checkpoint, load_checkpoint
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import decode_prediction, encode_cue, topic
from mien.stream.inference.about import tag_of
from mien.stream.processes.plan import Session
from mien.stream.recording import channels
from mien.stream.recording.cues import Cued, CueMaker, Sent
from mien.stream.recording.reader import Recording


def plan_replay(
    recording: Recording,
    config: Config,
    *,
    speed: float,
    checkpoint: str | None = None,
    engine: str | None = None,
) -> Session:
    """The session that replays a recording.

    Args:
        config: the user's; only its bus is used. Whatever affects numbers is taken from the recording.
        speed: 0 is as fast as possible.
        checkpoint, engine: replacements for the recorded ones.

    Raises:
        RecordingError: there is nothing to replay.
        CheckpointError: the model needs other features than the recorded ones.
    """
    if channels.PREDICTION not in recording.channels:
        raise RecordingError(f"{recording.path} holds no predictions, so there is nothing to replay")
    recorded = recorded_inference(recording)
    inference = msgspec.structs.replace(
        recorded,
        checkpoint=recorded.checkpoint if checkpoint is None else checkpoint,
        engine=engine or recorded_engine(recording),
    )
    try:
        weights = load_checkpoint(inference.checkpoint)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(
            f"{error} (the recording was made with these weights; name others with --checkpoint)"
        ) from error
    check_features(recording, weights)
    return Session(
        config=msgspec.structs.replace(
            config,
            session=recording.session,
            # Whose baseline was already applied to the recorded rows, for the predictions' tag.
            person=PersonConfig(name=tag_of(recording.about.model) if recording.about is not None else ""),
            inference=inference,
            clip=msgspec.structs.replace(config.clip, fast=speed == 0, loop=False),
        ),
        workers=(),
        absent={},
        notes=(),
        label=recording.path.name,
        origin="replay",
    )


def has_other_clocks(recording: Recording) -> bool:
    """Whether capture ran on other machines.

    Inference then converted their times to its own, by an offset that is measured continuously and not recorded. A
    replay is equal only if that moved no row into another slot.
    """
    workers: dict[str, str] = recording.about.config.get("bus", {}).get("workers", {}) if recording.about else {}
    return any(workers.values())


def recorded_inference(recording: Recording) -> InferenceConfig:
    """Inference settings of the recording; fields unknown to this version are dropped."""
    found: dict[str, Any] = recording.about.config.get("inference", {}) if recording.about is not None else {}
    known = {name: found[name] for name in InferenceConfig.__struct_fields__ if name in found}
    try:
        return msgspec.convert(known, InferenceConfig)
    except msgspec.ValidationError:
        return InferenceConfig()


def recorded_engine(recording: Recording) -> str:
    """The engine that made the recorded predictions; "auto" if unclear."""
    if recording.about is None:
        return "auto"
    names = {part.rpartition("-")[0] for part in recording.about.model.partition("/")[2].split("+")}
    return names.pop() if len(names) == 1 else "auto"


def check_features(recording: Recording, weights: Checkpoint) -> None:
    """Reject a model trained on other features than the recorded ones: its numbers would be wrong.

    Raises:
        CheckpointError: which features do not fit.
    """
    for spec in weights.specs:
        for entry in recording.entries({channels.FEATURES + spec.name}):
            record, _ = entry.features()
            if (record.extractor, record.dim) != (spec.extractor, spec.dim):
                raise CheckpointError(
                    f"{recording.path} holds {spec.name} features of {record.extractor}, {weights.id} was trained on "
                    f"{spec.extractor}; name weights that fit with --checkpoint"
                )
            break


# Not repeated to late subscribers, as in a live session: rows that append, pictures, sound.
_FLEETING = (b"/vision", b"/audio", b"/picture", b"/")
_AHEAD = 32  # maximum number of unanswered cues
_LISTENER_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 30.0


class Player:
    """Publishes a recording in place of the capture workers, from its own thread.

    Args:
        recording: to replay.
        bus: whose worker ports are bound.
        speed: 1 for real time, 2 for twice as fast; 0 for as fast as inference can.
        prime: see `CueMaker`.

    Attributes:
        tally: number of predictions that are "equal" to the recorded ones bit by bit, "differing" although the
            recording holds all of their inputs, or not equal with inputs missing ("incomplete"); complete once the
            replay has ended.
        first_difference: in words.
        error: why it stopped early.

    Raises:
        BusError: a port is in use.
    """

    def __init__(self, recording: Recording, bus: BusConfig, speed: float, *, prime: bool = True) -> None:
        self.tally: Counter[str] = Counter()
        self.first_difference: str | None = None
        self.error: MienError | None = None
        self._recording = recording
        self._maker = CueMaker(recording, prime=prime)
        self._speed = speed
        self._stopping = threading.Event()
        self._expected: deque[Cued] = deque()
        self._publishers: dict[str, Publisher] = {}
        try:
            for worker in WORKERS:
                # Never drops: a cue waits for the messages it names.
                self._publishers[worker] = Publisher(bus.endpoint(worker), bus, lossless=True)
        except MienError:
            self.close()
            raise
        session = recording.session
        answers = topic("prediction", session), topic("status", session, "inference")
        self._answers = Receiver(bus.address(), answers, 10_000, bus.keys)
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and release the ports."""
        self._stopping.set()
        if self._publishers.keys() == WORKERS.keys() and self._thread.is_alive():
            self._thread.join(10)
        for publisher in self._publishers.values():
            publisher.close()
        if self._publishers.keys() == WORKERS.keys():
            self._answers.close()
        self._publishers = {}

    def _run(self) -> None:
        try:
            self._await_inference()
            began_s, first_ns = time.monotonic(), self._recording.first_ns
            for item in self._maker.items():
                if self._speed:
                    self._wait_until(began_s + (item.log_ns - first_ns) / NS_PER_S / self._speed)
                else:
                    self._service(0.0)
                if isinstance(item, Sent):
                    self._publishers[item.worker].send(item.frames, keep=not item.frames[0].endswith(_FLEETING))
                else:
                    self._await_answers(_AHEAD - 1)
                    self._expected.append(item)
                    self._publishers["video"].send(encode_cue(item.cue), keep=False)
                if self._stopping.is_set():
                    return
            self._await_answers(0)
            self._publishers["video"].send(encode_cue(self._maker.end()), keep=False)
            while not self._stopping.is_set():
                self._service()
        except MienError as error:
            self.error = error

    def _await_inference(self) -> None:
        """Wait until it listens on all ports and has answered our subscription with its last status.

        Anything sent or predicted before that is lost.
        """
        until_s = time.monotonic() + _LISTENER_TIMEOUT_S
        session = self._recording.session
        answered = False
        while not self._stopping.is_set() and time.monotonic() < until_s:
            answered = answered or any(frames[0].startswith(b"status/") for frames in self._answers.drain())
            heard = (p.has_subscriber(topic("features", session, WORKERS[w])) for w, p in self._publishers.items())
            if all(heard) and answered:
                return
            time.sleep(0.005)

    def _wait_until(self, at_s: float) -> None:
        while (left_s := at_s - time.monotonic()) > 0 and not self._stopping.is_set():
            self._service(min(left_s, 0.05))

    def _await_answers(self, open_cues: int) -> None:
        """Wait until at most that many cues are unanswered."""
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while len(self._expected) > open_cues and not self._stopping.is_set():
            if time.monotonic() > deadline_s:
                raise WorkerError("inference does not answer; the replay cannot continue")
            self._service(0.05)

    def _service(self, wait_s: float = 0.05) -> None:
        for publisher in self._publishers.values():
            publisher.service()
        if wait_s:
            self._answers.socket.poll(max(1, int(wait_s * 1000)), zmq.POLLIN)
        for frames in self._answers.drain():
            try:
                self._compare(decode_prediction(frames))
            except WireError:
                continue

    def _compare(self, made: Prediction) -> None:
        # Predictions are numbered like their cues; the last one may be repeated.
        while self._expected and self._expected[0].cue.seq < made.seq:
            self._expected.popleft()
        if not self._expected or self._expected[0].cue.seq != made.seq:
            return
        cued = self._expected.popleft()
        if content(made) == content(cued.recorded):
            self.tally["equal"] += 1
        elif not cued.exact:
            self.tally["incomplete"] += 1
        else:
            self.tally["differing"] += 1
            if self.first_difference is None:
                self.first_difference = describe_difference(cued.recorded, made)


_encode = msgspec.json.Encoder(order="deterministic").encode


def content(prediction: Prediction) -> bytes:
    """A prediction's content without run-specific fields; equal bytes mean bit-equal numbers.

    Excluded are the numbers of run, message and inputs, and timings.
    """
    return _encode(msgspec.structs.replace(prediction, run=0, seq=0, latency={}, inputs={}))


def describe_difference(recorded: Prediction, made: Prediction) -> str:
    """The first field in which two predictions differ, in words."""
    for name in Prediction.__struct_fields__:
        if name not in ("run", "seq", "latency", "inputs") and getattr(recorded, name) != getattr(made, name):
            return (
                f"at {recorded.t_end_ns / NS_PER_S:.2f} s, {name}: "
                f"{getattr(recorded, name)} recorded, {getattr(made, name)} now"
            )
    return "none"
