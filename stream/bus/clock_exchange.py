"""Clock offset of another host: NTP's exchange (RFC 5905, section 8), over the bus.

Inference asks by subscribing to a unique topic, `clock/<session>/<nonce>`; the publisher answers on it with the times
at which it saw the question and answered. So no extra port is needed, and only permitted subscribers can ask.

A worker sees questions only when it publishes. A question asked right after a row waits for the next row, and half of
that wait would always be mistaken for an offset. So questions are asked at random moments, some of which fall right
before a row.

On one machine nothing needs estimating: all processes count from boot, so only the anchors of their clocks differ, and
the answer contains the anchor.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from functools import cache
from pathlib import Path

import msgspec

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.errors import WireError
from mien.stream.bus.limits import MAX_TIME_NS
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import VERSION_BYTE, open_frames, parse, topic

_KEPT = 64
_EAGER = 24  # exchanges at the eager rate, before one a second is enough
_EAGER_NS, _SETTLED_NS, _KNOWN_NS = 80 * NS_PER_MS, NS_PER_S, 10 * NS_PER_S
_PATIENCE_NS = 3 * NS_PER_S  # a slower answer is useless
_DRIFT = 100e-6  # maximum drift between two crystals
_ANSWER_BYTES = 256
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SLACK_NS = NS_PER_MS


class ClockAnswer(msgspec.Struct, frozen=True):
    """A publisher's answer. Its session time, in ns.

    Attributes:
        run: of the publisher; each run has its own clock.
        received_ns: when it saw the question. sent_ns: when it answered.
        boot: see `this_boot`; empty if unknown. anchor_ns: of its clock.
    """

    run: int
    received_ns: int
    sent_ns: int
    boot: str = ""
    anchor_ns: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ClockAnswer).decode


@cache
def this_boot() -> str:
    """An opaque id of this boot of this machine, 16 hex digits; empty if unknown."""
    try:
        return hashlib.blake2b(_BOOT.read_bytes(), digest_size=8, person=b"mien-boot").hexdigest()
    except OSError:
        return ""


def answer_question(question: bytes, run: int, clock: Clock) -> list[bytes]:
    """The answer to a subscription, as a message."""
    now_ns = clock.now_ns()
    return [question, VERSION_BYTE, _encode(ClockAnswer(run, now_ns, now_ns, this_boot(), clock.anchor_ns))]


def decode_answer(frames: list[bytes]) -> ClockAnswer:
    """The answer in a message, or WireError."""
    answer = parse(_decode, open_frames(frames)[1], _ANSWER_BYTES)
    if not 0 <= answer.received_ns <= answer.sent_ns <= MAX_TIME_NS:
        raise WireError("time: of a clock answer")
    return answer


class ClockOffset:
    """An offset estimate from exchanges; the one with the shortest round trip is the best. Pure."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int, int]] = deque(maxlen=_KEPT)  # rank, delay, offset, when
        self._best: tuple[float, int, int, int] | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, asked_ns: int, received_ns: int, sent_ns: int, heard_ns: int) -> None:
        """Add an exchange: the first and last times are on our clock, the others on theirs."""
        delay_ns = (heard_ns - asked_ns) - (sent_ns - received_ns)
        if 0 <= delay_ns <= _PATIENCE_NS:
            offset_ns = ((received_ns - asked_ns) + (sent_ns - heard_ns)) // 2
            # All of them degrade by the same drift, so the best one changes only when one is added.
            self._samples.append((delay_ns / 2 - heard_ns * _DRIFT, delay_ns, offset_ns, heard_ns))
            self._best = min(self._samples)

    def estimate(self, now_ns: int) -> tuple[int, int] | None:
        """Their clock minus ours and its maximum error, in ns; None before the first exchange."""
        if self._best is None:
            return None
        _, delay_ns, offset_ns, at_ns = self._best
        return offset_ns, delay_ns // 2 + int((now_ns - at_ns) * _DRIFT)


class ClockExchange:
    """Asks the publisher behind a receiver repeatedly.

    Attributes:
        run: of the publisher that the estimate refers to.
    """

    def __init__(self, receiver: Receiver, session: str, clock: Clock) -> None:
        self.run: int | None = None
        self._receiver = receiver
        self._session = session
        self._clock = clock
        self._offset = ClockOffset()
        self._known_ns: int | None = None  # their anchor minus ours, where they are on this machine
        self._to_ours_ns: int | None = None
        self._pending: tuple[bytes, int] | None = None
        self._due_ns = 0

    @property
    def due_ns(self) -> int:
        """When to ask next; while a question is unanswered, after its timeout."""
        return self._due_ns if self._pending is None else max(self._due_ns, self._pending[1] + _PATIENCE_NS)

    def tick(self) -> bool:
        """Ask if it is due, and return whether it was. Call it at `due_ns`, not only when messages arrive."""
        now_ns = self._clock.now_ns()
        if now_ns < self.due_ns:
            return False
        if self._pending is not None:
            self._receiver.socket.unsubscribe(self._pending[0])
        question = topic("clock", self._session, secrets.token_hex(8))
        interval_ns = _EAGER_NS if len(self._offset) < _EAGER else _SETTLED_NS
        self._due_ns = now_ns + interval_ns // 2 + secrets.randbelow(interval_ns)
        # Read before asking: an answer may arrive before this process resumes, and the error bound must hold then too.
        self._pending = question, self._clock.now_ns()
        self._receiver.socket.subscribe(question)
        return True

    def receive(self, frames: list[bytes], received_ns: int) -> None:
        """Process an answer; duplicates and answers to other questions are ignored.

        Raises:
            WireError: it violates the protocol.
        """
        if self._pending is None or frames[0] != self._pending[0]:
            return
        question, asked_ns = self._pending
        self._pending = None
        self._receiver.socket.unsubscribe(question)
        answer = decode_answer(frames)
        if answer.run != self.run:
            self.run, self._offset = answer.run, ClockOffset()
        self._offset.add(asked_ns, answer.received_ns, answer.sent_ns, received_ns)
        is_here = answer.boot != "" and answer.boot == this_boot()
        self._known_ns = answer.anchor_ns - self._clock.anchor_ns if is_here else None
        estimate = self.estimate()
        self._to_ours_ns = None if estimate is None else -estimate[0]
        if self._known_ns is not None and estimate == (self._known_ns, 0):
            self._due_ns = received_ns + _KNOWN_NS // 2 + secrets.randbelow(_KNOWN_NS)

    def estimate(self) -> tuple[int, int] | None:
        """Offset and error in ns, as `ClockOffset.estimate`; without an error on one machine."""
        found = self._offset.estimate(self._clock.now_ns())
        # The known offset must agree with the measured one: containers may have their own clocks.
        if found is None or self._known_ns is None or abs(self._known_ns - found[0]) > found[1] + _SLACK_NS:
            return found
        return self._known_ns, 0

    def to_local_ns(self, run: int) -> int | None:
        """What to add to times of the publisher's run to get our session time; None if not known yet."""
        if self._to_ours_ns is None or run != self.run:
            self._due_ns = min(self._due_ns, self._clock.now_ns())
            return None
        return self._to_ours_ns
