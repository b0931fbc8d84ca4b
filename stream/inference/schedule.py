"""When to predict a live session. Reads no clock."""

from __future__ import annotations

from dataclasses import dataclass

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import FeatureWindow
from mien.stream.sources.pace import Pace

LEADERS = ("vision", "audio")
JITTER = 0.85  # so that max_hz = 30 does not halve a 30 Hz camera that is occasionally a little early


@dataclass(frozen=True)
class Trigger:
    """An instant to predict for, with the times of the message that triggered it (None for the timer)."""

    t_end_ns: int
    read_ns: int | None = None
    sent_ns: int | None = None
    received_ns: int | None = None


class LiveSchedule:
    """Newest first.

    The leading modality sets the pace: vision while it delivers often enough, else audio, else a timer. Only the newest
    instant is predicted, and older ones are counted as skipped. Pure: it reads no clock.

    Args:
        max_hz: maximum predictions per second. hop_ms: interval of the timer. max_age_ms: a leader silent for longer
            loses the lead, and one that is usually silent for longer never leads.
    """

    def __init__(self, max_hz: float, hop_ms: int, max_age_ms: int) -> None:
        self.skipped = 0
        self._interval_ns = int(NS_PER_S / max_hz * JITTER)
        self._hop_ns = hop_ms * NS_PER_MS
        self._max_age_ns = max_age_ms * NS_PER_MS
        self._heard_ns: dict[str, int] = {}
        self._paces = {modality: Pace() for modality in LEADERS}
        self._pending: Trigger | None = None
        self._last_ns = self._step_ns = 0
        self._last_made_ns = 0

    def hear(self, message: FeatureWindow, received_ns: int) -> bool:
        """A message was accepted. Returns whether predictions are made when its modality delivers."""
        modality, t_end_ns = message.modality, message.t_end_ns
        if modality not in LEADERS:
            return False
        self._heard_ns[modality] = received_ns
        self._paces[modality].hear(t_end_ns)
        if modality != self._leader(received_ns):
            return False
        if t_end_ns > self._last_ns:
            self.skipped += self._pending is not None
            self._pending = Trigger(t_end_ns, message.stamps.get("read"), message.stamps.get("sent"), received_ns)
        return True

    def lose(self, modality: str) -> None:
        """A modality was lost: another one leads at once."""
        self._heard_ns.pop(modality, None)

    def due(self, now_ns: int) -> Trigger | None:
        """The prediction due now, if any."""
        trigger = self._pending
        if trigger is not None:
            if trigger.t_end_ns - self._last_ns < self._interval_ns:
                self._pending = None
                self.skipped += 1
                return None
        elif self._leader(now_ns) is None and now_ns - self._last_made_ns >= self._hop_ns:
            trigger = Trigger(max(now_ns, self._last_ns + 1))
        if trigger is None:
            return None
        self._step_ns = trigger.t_end_ns - self._last_ns
        self._pending, self._last_ns, self._last_made_ns = None, trigger.t_end_ns, now_ns
        return trigger

    def next_ns(self) -> int | None:
        """The instant likely to be due next, extrapolated from the last two.

        None while one is due, and if the last two do not allow it.
        """
        is_known = self._pending is None and 0 < self._step_ns <= self._max_age_ns
        return self._last_ns + self._step_ns if is_known else None

    def wake_ns(self) -> int:
        """When a prediction becomes due without a message: the pending one, or the timer if no modality leads."""
        if self._pending is not None:
            return 0
        leaders = [m for m in self._heard_ns if not self._paces[m].is_slower(self._max_age_ns)]
        heard_ns = max((self._heard_ns[modality] for modality in leaders), default=-(1 << 62))
        return max(heard_ns + self._max_age_ns + 1, self._last_made_ns + self._hop_ns)

    def _leader(self, now_ns: int) -> str | None:
        for modality in LEADERS:
            heard = now_ns - self._heard_ns.get(modality, -(1 << 62)) <= self._max_age_ns
            if heard and not self._paces[modality].is_slower(self._max_age_ns):
                return modality
        return None
