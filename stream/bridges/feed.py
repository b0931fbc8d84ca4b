"""What bridges forward: predictions and changed statuses of running sessions, read from the bus."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mien.clock import NS_PER_S
from mien.messages import Prediction, Status
from mien.stream.bus.subscriber import DEFAULT_ENDPOINT, Subscriber

log = logging.getLogger(__name__)

Event = Prediction | Status
_SILENT_AFTER_S = 5.0


@dataclass
class Counts:
    """A bridge's counters.

    Attributes:
        received: incoming predictions. thinned: of these, left out to keep to the requested rate.
        sent: messages to peers. dropped: messages lost to a slow or absent peer. errors: failed sends.
        connects: how often a peer connected, or the bridge connected to its peer.
    """

    received: int = 0
    thinned: int = 0
    sent: int = 0
    dropped: int = 0
    errors: int = 0
    connects: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in asdict(self).items())


class Feed:
    """Reads the bus in the calling thread.

    Args:
        endpoint: where inference publishes. session: one session's name; None for all. keys: folder of keys.
        rate_hz: maximum predictions per second and session; None for no limit.
    """

    def __init__(
        self,
        counts: Counts,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        session: str | None = None,
        keys: str | Path = "",
        rate_hz: float | None = None,
    ) -> None:
        self.counts = counts
        self.endpoint, self.keys = endpoint, keys
        self._subscriber = Subscriber(endpoint, session=session, keys=keys)
        self._interval_ns = round(NS_PER_S / rate_hz) if rate_hz else 0
        self._due_ns: dict[str, int] = {}
        self._sent_states: dict[tuple[str, str], tuple[str, str | None]] = {}

    def wait(self, timeout_s: float) -> list[Event]:
        """Events, oldest first; empty if none arrived within `timeout_s`."""
        predictions = self._subscriber.wait(timeout_s)
        self.counts.received += len(predictions)
        events: list[Event] = []
        for status in self._subscriber.take_statuses():
            process, state = (status.session, status.worker), (status.state, status.last_error)
            if self._sent_states.get(process) != state:
                self._sent_states[process] = state
                events.append(status)
        for prediction in predictions:
            if self._is_due(prediction):
                events.append(prediction)
            else:
                self.counts.thinned += 1
        return events

    def run(self, send: Callable[[Event], object], is_stopping: Callable[[], bool]) -> None:
        """Forward everything until stopped (polled ten times a second).

        Args:
            send: must not block; it drops and counts what it cannot pass on.
        """
        heard_s, is_silent = time.monotonic(), False
        while not is_stopping():
            events = self.wait(0.1)
            if events:
                heard_s, is_silent = time.monotonic(), False
            elif not is_silent and time.monotonic() - heard_s > _SILENT_AFTER_S:
                is_silent = True
                log.warning("nothing received from %s; is `mien run` running on that port? Waiting", self.endpoint)
            for event in events:
                send(event)

    def close(self) -> None:
        self._subscriber.close()

    def _is_due(self, prediction: Prediction) -> bool:
        if not self._interval_ns:
            return True
        due_ns = self._due_ns.get(prediction.session, 0)
        # Session time going backwards means another run or a looping clip.
        if due_ns - self._interval_ns <= prediction.t_end_ns < due_ns:
            return False
        late_ns = prediction.t_end_ns - due_ns
        # On a fixed grid, so that 25 predictions a second thinned to 10 are 10 and not 8.
        beat = due_ns if 0 <= late_ns < self._interval_ns else prediction.t_end_ns
        self._due_ns[prediction.session] = beat + self._interval_ns
        return True
