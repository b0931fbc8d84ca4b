"""What a subscriber at the gateway receives: by session and run, with the statuses in between."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from mien.errors import WireError
from mien.messages import Prediction, Status
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.wire import decode_prediction, decode_status

# If a camera's machine is lost, that is reported before its pool has released the session.
_EARLY_S = 3.0


@dataclass
class Received:
    """One session: (time, run, seq, latency in ms, whether it had evidence) of predictions, and statuses with times."""

    predictions: list[tuple[float, int, int, float, bool]] = field(default_factory=list)
    statuses: list[tuple[float, Status]] = field(default_factory=list)


class Listener:
    """Subscribes to everything, in a thread."""

    def __init__(self, endpoint: str) -> None:
        self.sessions: dict[str, Received] = defaultdict(Received)
        self._receiver = Receiver(endpoint, (b"prediction/", b"status/"), 100_000)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(5.0)
        self._receiver.close()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            self._receiver.socket.poll(50)
            for frames in self._receiver.drain(10_000):
                try:
                    if frames[0].startswith(b"status/"):
                        status = decode_status(frames)
                        self.sessions[status.session].statuses.append((time.monotonic(), status))
                    else:
                        self._take(decode_prediction(frames))
                except WireError as error:
                    raise AssertionError(f"refused: {error}") from error

    def _take(self, prediction: Prediction) -> None:
        received = self.sessions[prediction.session]
        last = received.predictions[-1] if received.predictions else None
        if last is not None and (last[1], last[2]) == (prediction.run, prediction.seq):
            return  # the last value, sent again
        evidence = prediction.abstains is None
        latency = (time.time_ns() - prediction.t_end_ns) / 1e6
        received.predictions.append((time.monotonic(), prediction.run, prediction.seq, latency, evidence))

    def newest_runs(self) -> dict[str, int]:
        """Of sessions with predictions."""
        return {name: received.predictions[-1][1] for name, received in self.sessions.items() if received.predictions}

    def wait_new_run(self, session: str, than: int, timeout_s: float) -> float:
        """When the first prediction with evidence of a newer run came, `time.monotonic()`."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for at_s, run, _, _, evidence in reversed(self.sessions[session].predictions[-200:]):
                if run > than and evidence:
                    return at_s
            time.sleep(0.02)
        raise AssertionError(f"{session} is not predicted again: {self.sessions[session].predictions[-3:]}")

    def stale(self) -> dict[str, int]:
        """How many messages had an older run than one before them, by session."""
        found = {}
        for name, received in self.sessions.items():
            runs = [run for _, run, _, _, _ in received.predictions]
            found[name] = sum(1 for before, after in itertools.pairwise(runs) if after < before)
        return found

    def gaps(self) -> dict[str, list[str]]:
        """Per session, the reason given between its runs; for an unexplained gap, the statuses instead."""
        found = {}
        for name, received in self.sessions.items():
            reasons = []
            for before, after in itertools.pairwise(received.predictions):
                if before[1] == after[1]:
                    continue
                between = [s for at_s, s in received.statuses if before[0] - _EARLY_S <= at_s <= after[0] + 0.5]
                why = [s.last_error for s in between if s.worker == "inference" and s.state in ("failed", "starting")]
                states = [(s.worker, s.state, s.run) for s in between]
                instead = f"UNEXPLAINED for {after[0] - before[0]:.2f} s: {states}"
                reasons.append(next(filter(None, why), instead))
            found[name] = reasons
        return found

    def latencies(self, sessions: set[str], from_s: float, to_s: float) -> list[float]:
        """From capture to here, in ms, of some sessions over a while."""
        return [p[3] for name in sessions for p in self.sessions[name].predictions if from_s <= p[0] <= to_s]
