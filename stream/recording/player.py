"""Replaying a recording: what the capture workers had sent is sent again, on their ports, at the old pace or faster."""

from __future__ import annotations

import threading
import time
from collections import deque

import msgspec
import zmq

from mien.clock import NS_PER_S
from mien.config import BusConfig
from mien.errors import MienError, WireError, WorkerError
from mien.messages import WORKERS, Prediction
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import decode_prediction, encode_cue, topic
from mien.stream.recording.cues import Cued, CueMaker, Sent
from mien.stream.recording.reader import Recording

# What is not for those who come later, as in a live session: rows that append, pictures, sound.
_FLEETING = (b"/vision", b"/audio", b"/picture", b"/")
_AHEAD = 32  # cues that may be unanswered
_LISTENER_PATIENCE_S = 20.0
_ANSWER_PATIENCE_S = 30.0


class Tally(msgspec.Struct):
    """How a replay compares with its recording.

    Attributes:
        predictions: that were made. equal: of them, bit-equal to the recorded ones. differing: not so, although the
            recording holds all that they were made from. incomplete: it does not, and they are not equal.
        first_difference: in words.
    """

    predictions: int = 0
    equal: int = 0
    differing: int = 0
    incomplete: int = 0
    first_difference: str | None = None


class Player:
    """Publishes a recording in place of the capture workers, from a thread of its own.

    Args:
        recording: to replay.
        bus: whose worker ports are bound.
        speed: 1 for the pace at which it was recorded, 2 for twice that; 0 for as fast as inference can.
        prime: see `CueMaker`.

    Attributes:
        tally: how predictions compare with the recorded ones; complete once the replay has ended.
        error: why it could not go on.

    Raises:
        BusError: a port is in use.
    """

    def __init__(self, recording: Recording, bus: BusConfig, speed: float, *, prime: bool = True) -> None:
        self.tally = Tally()
        self.error: MienError | None = None
        self._recording = recording
        self._maker = CueMaker(recording, prime=prime)
        self._speed = speed
        self._stopping = threading.Event()
        self._expected: deque[Cued] = deque()
        self._publishers: dict[str, Publisher] = {}
        try:
            for worker in WORKERS:
                # Never drops: a cue waits for what it names.
                self._publishers[worker] = Publisher(bus.endpoint(worker), bus, lossless=True)
        except MienError:
            self.close()
            raise
        session = recording.session
        answers = topic("prediction", session), topic("status", session, "inference")
        self._answers = Receiver(bus.address(), answers, 10_000, bus.keys)
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
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
        """Until it listens on all ports and has answered our subscription with its last status.

        What is sent or predicted before is lost.
        """
        until_s = time.monotonic() + _LISTENER_PATIENCE_S
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
        """Until at most so many cues have no prediction yet."""
        give_up_s = time.monotonic() + _ANSWER_PATIENCE_S
        while len(self._expected) > open_cues and not self._stopping.is_set():
            if time.monotonic() > give_up_s:
                raise WorkerError("inference does not answer; the replay cannot go on")
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
        # Predictions are numbered as their cues are; the last one may come twice.
        while self._expected and self._expected[0].cue.seq < made.seq:
            self._expected.popleft()
        if not self._expected or self._expected[0].cue.seq != made.seq:
            return
        cued = self._expected.popleft()
        self.tally.predictions += 1
        if content(made) == content(cued.recorded):
            self.tally.equal += 1
        elif not cued.exact:
            self.tally.incomplete += 1
        else:
            self.tally.differing += 1
            if self.tally.first_difference is None:
                self.tally.first_difference = describe_difference(cued.recorded, made)


_encode = msgspec.json.Encoder(order="deterministic").encode


def content(prediction: Prediction) -> bytes:
    """What a prediction says, without what differs from run to run; equal bytes are equal numbers to the last bit.

    Left out are the numbers of run, message and inputs, and how long it took.
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
