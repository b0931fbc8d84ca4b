"""Subscribe to a running mien from your own program.

for prediction in mien.subscribe():
    print(prediction.sentiment, prediction.top_emotion)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import TypedDict, Unpack

import zmq

from mien.closing import Closing
from mien.errors import BusError, WireError
from mien.messages import WORKERS, Prediction, Status
from mien.stream.bus.parts import KIND, decode_part, part_topic
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import decode_prediction, decode_status, topic

_MAX_SESSIONS = 1024  # a publisher may invent names: bounds what is kept per session
_MAX_PROCESSES = 8 * _MAX_SESSIONS
_MOST_NAMED = 20  # sessions listed in a message
_PROBE_S = 1.0  # a publisher repeats its last message at once; another machine may be far away
DEFAULT_ENDPOINT = "tcp://127.0.0.1:5560"


class Selection(TypedDict, total=False):
    """What to receive, and with which keys: arguments of `Subscriber`."""

    session: str | None
    newest_only: bool
    keys: str | Path
    fields: Collection[str] | None
    rate_hz: float | None


class Subscriber(Closing):
    """A connection to a mien that is running, or will be; reconnects when it restarts.

    Args:
        endpoint: where the inference process publishes.
        session: one session's name; None for all.
        newest_only: skip to the newest prediction when several are waiting; the skipped ones are counted.
        keys: folder of keys; default: the user's, for an endpoint on another machine (`mien keys`).
        fields: of `Prediction` to receive; only these are encoded and sent, all others are None or empty.
        rate_hz: maximum predictions per second, thinned out by the publisher. Both need a publisher that supports them;
            an older mien sends nothing.

    Attributes:
        lost: predictions that never arrived, detected by gaps in their numbers; always 0 with `rate_hz`.
        skipped: predictions passed over because newer ones were waiting.
        refused: messages that violated the protocol, by cause.
        statuses: the newest status of each process, by worker; of several sessions, see `statuses_of`.

    Raises:
        BusError: `endpoint` is not an address. KeysError: it is on another machine, and keys are missing.
        InputError: there is no such field, or the rate is invalid.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        session: str | None = None,
        newest_only: bool = False,
        keys: str | Path = "",
        fields: Collection[str] | None = None,
        rate_hz: float | None = None,
    ) -> None:
        predictions = b"prediction/" if session is None else topic("prediction", session)
        if fields is not None or rate_hz is not None:
            predictions = part_topic(session, fields, rate_hz)
        prefixes = predictions, b"status/" if session is None else topic("status", session)
        self.lost = 0
        self.skipped = 0
        self.refused: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()  # by session
        self._statuses: dict[str, dict[str, Status]] = {}  # by session, and worker
        self._heard: dict[tuple[str, str], Status] = {}
        self._receiver = Receiver(endpoint, prefixes, high_water_mark=256, keys=keys)
        self._newest_only, self._has_rate = newest_only, rate_hz is not None
        self._newest: dict[str, tuple[int, int]] = {}

    def wait(self, timeout_s: float) -> list[Prediction]:
        """Wait for predictions and return them, oldest first; empty if none came within `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            predictions = self.poll()
            left_s = deadline_s - time.monotonic()
            if predictions or left_s <= 0:
                return predictions
            self._receiver.socket.poll(max(int(left_s * 1000), 1), zmq.POLLIN)

    def poll(self) -> list[Prediction]:
        """The predictions that have arrived, without waiting."""
        predictions: list[Prediction] = []
        for frames in self._receiver.drain():
            try:
                if frames[0].startswith(b"status/"):
                    self._hear(decode_status(frames))
                    continue
                is_part = frames[0].startswith(KIND)
                prediction = decode_part(frames) if is_part else decode_prediction(frames)
            except WireError as error:
                self.refused[str(error).split(":")[0]] += 1
                continue
            if self._is_new(prediction):
                predictions.append(prediction)
        if self._newest_only and len(predictions) > 1:
            self.skipped += len(predictions) - 1
            return predictions[-1:]
        return predictions

    @property
    def sessions(self) -> list[str]:
        """Names of the sessions that have sent anything, sorted."""
        return sorted(self._statuses.keys() | self._newest.keys())

    @property
    def statuses(self) -> dict[str, Status]:
        newest: dict[str, Status] = {}
        for statuses in list(self._statuses.values()):
            for worker, status in list(statuses.items()):
                if worker not in newest or status.t_ns >= newest[worker].t_ns:
                    newest[worker] = status
        return newest

    def statuses_of(self, session: str) -> dict[str, Status]:
        """The newest status of each process of a session, by worker."""
        return dict(self._statuses.get(session, {}))

    def lost_of(self, session: str) -> int:
        """As `lost`, of one session."""
        return self._lost[session]

    def take_statuses(self) -> list[Status]:
        """The statuses that have arrived since the last call, the newest of each process of each session."""
        heard, self._heard = list(self._heard.values()), {}
        return heard

    def close(self) -> None:
        """Disconnect."""
        self._receiver.close()

    def _hear(self, status: Status) -> None:
        """Keep a status; a publisher that invents names does not fill memory."""
        self._count_missed(status)
        known = self._statuses.get(status.session, {})
        if status.worker not in known and sum(map(len, self._statuses.values())) >= _MAX_PROCESSES:
            self.refused["workers"] += 1
            return
        self._statuses.setdefault(status.session, known)[status.worker] = status
        self._heard[status.session, status.worker] = status

    def _count_missed(self, status: Status) -> None:
        """A status tells how far inference has counted: earlier predictions that have not arrived are lost."""
        if self._has_rate:
            return
        run, seq = self._newest.get(status.session, (-1, -1))
        if status.worker == "inference" and status.next_seq is not None and run == status.run:
            missed = status.next_seq - seq - 1
            if missed > 0:
                self._count_lost(status.session, missed)
                self._newest[status.session] = (run, status.next_seq - 1)

    def _is_new(self, prediction: Prediction) -> bool:
        """False for a repeated last value; counts gaps within a run."""
        run, seq = self._newest.get(prediction.session, (-1, -1))
        if prediction.run == run:
            if prediction.seq <= seq:
                return False
            self._count_lost(prediction.session, 0 if self._has_rate else prediction.seq - seq - 1)
        elif prediction.session not in self._newest and len(self._newest) >= _MAX_SESSIONS:
            forgotten = next(iter(self._newest))
            del self._newest[forgotten]
            self._lost.pop(forgotten, None)
        self._newest[prediction.session] = (prediction.run, prediction.seq)
        return True

    def _count_lost(self, session: str, count: int) -> None:
        if count:
            self.lost += count
            self._lost[session] += count


def explain_silence(endpoint: str, session: str | None, silent_s: float, keys: str | Path = "") -> str:
    """One line on why no prediction arrived: listens briefly to statuses of any session.

    Args:
        endpoint, session, keys: as for `Subscriber`. silent_s: for how long nothing has come.
    """
    workers: set[str] = set()
    names: set[str] = set()
    receiver = Receiver(endpoint, (b"status/",), high_water_mark=256, keys=keys)
    try:
        deadline_s = time.monotonic() + _PROBE_S
        while time.monotonic() < deadline_s:
            receiver.socket.poll(50, zmq.POLLIN)
            for frames in receiver.drain():
                with contextlib.suppress(WireError):
                    status = decode_status(frames)
                    workers.add(status.worker)
                    names.add(status.session)
    finally:
        receiver.close()
    found, sessions = misdirected(workers, endpoint), sorted(names)[:_MOST_NAMED]
    if found or (receiver.trouble and not names):
        return found or receiver.trouble or ""
    if session is not None and sessions and session not in sessions:
        return f"there is no session {session!r} at {endpoint}; heard there: {', '.join(sessions)}"
    if sessions:
        return f"no prediction came from {endpoint} for {silent_s:g} s, though mien is running; see mien status"
    return f"nothing came from {endpoint} for {silent_s:g} s; is `mien run` running on that port?"


def misdirected(workers: Collection[str], endpoint: str) -> str | None:
    """A hint that the endpoint is a capture worker's, judging by its statuses; None if it is not."""
    if len(workers) != 1 or not set(workers) <= set(WORKERS):
        return None
    worker = next(iter(workers))
    address, _, port = endpoint.rpartition(":")
    offset = list(WORKERS).index(worker) + 1
    right = f"{address}:{int(port) - offset}" if port.isdigit() else "the port that `mien run` was given"
    return f"{endpoint} is the {worker} worker's, {offset} above that of predictions; use {right}"


def subscribe(
    endpoint: str = DEFAULT_ENDPOINT, *, timeout_s: float | None = None, **selection: Unpack[Selection]
) -> Iterator[Prediction]:
    """Yield predictions as they come, forever; reconnects when mien is restarted.

    Args:
        endpoint: as for `Subscriber`.
        timeout_s: give up after this long without a prediction; None waits forever.
        selection: session, newest_only, keys, fields and rate_hz, as for `Subscriber`.

    Raises:
        BusError: `endpoint` is not an address, or nothing came within `timeout_s`; says which sessions are there.
        KeysError: it is on another machine, and keys are missing.
        InputError: there is no such field, or the rate is invalid.
    """
    with Subscriber(endpoint, **selection) as subscriber:
        received_s = time.monotonic()
        while True:
            for prediction in subscriber.wait(0.25):
                received_s = time.monotonic()
                yield prediction
                received_s = max(received_s, time.monotonic())
            if timeout_s is not None and time.monotonic() - received_s > timeout_s:
                silent = endpoint, selection.get("session"), timeout_s, selection.get("keys", "")
                raise BusError(explain_silence(*silent))


async def subscribe_async(
    endpoint: str = DEFAULT_ENDPOINT, *, timeout_s: float | None = None, **selection: Unpack[Selection]
) -> AsyncIterator[Prediction]:
    """`subscribe` for asyncio, on any event loop. Arguments and errors are the same."""
    with Subscriber(endpoint, **selection) as subscriber:
        received_s = time.monotonic()
        while True:
            predictions = subscriber.poll()
            if not predictions:
                # A poll costs 2 us; not every event loop can wait on the socket's descriptor (Windows).
                await asyncio.sleep(0.002)
                if timeout_s is not None and time.monotonic() - received_s > timeout_s:
                    silent = endpoint, selection.get("session"), timeout_s, selection.get("keys", "")
                    raise BusError(await asyncio.to_thread(explain_silence, *silent))
                continue
            for prediction in predictions:
                yield prediction
            received_s = time.monotonic()
