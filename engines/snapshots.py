"""The words of all sessions of a process: each session's newest message holds all words of its window.

A message becomes visible at its end; its rows count from the instant that it names, which may be later.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from mien.clock import NS_PER_S
from mien.messages import Bool, FeatureWindow, Float32, Int64, ModalitySpec, Phrase, Transcript, Word
from mien.windowing import WINDOW_NS, last_rows, place_rows

SPAN_NS = 10 * NS_PER_S  # time kept of a live stream: a window, and a margin for late or early rows
NEVER = -(1 << 62)


class Snapshots:
    """Words of many sessions: each message replaces all earlier words.

    Args:
        spec: the modality. places: session capacity. span_ns: how much time is kept of each.

    Attributes:
        features: (places, steps, dim). mask: (places, steps).
        words, phrases, transcripts: for display, per place. reasons: why none of its words counts, if known.
        written: places whose window was written since the list was last emptied; None until a list is set.
    """

    def __init__(self, spec: ModalitySpec, places: int, span_ns: int = SPAN_NS) -> None:
        self.spec = spec
        self.features = np.zeros((places, spec.steps, spec.dim), np.float32)
        self.mask = np.zeros((places, spec.steps), np.float32)
        self.words: list[tuple[Word, ...]] = [()] * places
        self.phrases: list[tuple[Phrase, ...]] = [()] * places
        self.transcripts = [Transcript()] * places
        self.reasons = [""] * places
        self.written: list[int] | None = None
        self._span_ns = span_ns
        self._kept: list[deque[FeatureWindow]] = [deque() for _ in range(places)]
        # The window is constant from the first of these until before the second.
        self._since_ns = np.zeros(places, np.int64)
        self._until_ns = np.full(places, NEVER, np.int64)
        self._newest_ns = np.full(places, NEVER, np.int64)
        self._fresh = np.ones(places, bool)

    def clear(self, place: int) -> None:
        self._kept[place].clear()
        self._until_ns[place] = NEVER

    def write(self, place: int, message: FeatureWindow) -> None:
        """Store a session's newest words."""
        kept = self._kept[place]
        kept.append(message)
        while len(kept) > 1 and kept[1].t_end_ns < message.t_end_ns - self._span_ns:
            kept.popleft()
        self._until_ns[place] = NEVER

    def look(self, places: Int64, t_end_ns: Int64) -> tuple[Int64, Bool]:
        stale = (t_end_ns >= self._until_ns[places]) | (t_end_ns < self._since_ns[places])
        for index in np.flatnonzero(stale).tolist():
            self._place(int(places[index]), int(t_end_ns[index]))
        changed = self._fresh[places]
        self._fresh[places] = False
        return t_end_ns, changed

    def look_at_one(self, place: int, t_end_ns: int) -> tuple[int, bool, int]:
        if t_end_ns >= self._until_ns[place] or t_end_ns < self._since_ns[place]:
            self._place(place, t_end_ns)
        changed = bool(self._fresh[place])
        self._fresh[place] = False
        return t_end_ns, changed, int(self._newest_ns[place])

    def gather(self, places: Int64, ends_ns: Int64, out: Float32 | None = None) -> tuple[Float32, Float32]:
        """As `Ring.gather`, for the windows that were looked at last."""
        del ends_ns, out
        return self.features[places], self.mask[places]

    def newest_ns(self, places: Int64, t_end_ns: Int64) -> Int64:
        """End of the newest word in the window looked at last, NEVER if there is none."""
        del t_end_ns
        return self._newest_ns[places]

    def _place(self, place: int, t_end_ns: int) -> None:
        """Build the window at an instant, and note until when it is constant."""
        kept = self._kept[place]
        shown = next((message for message in reversed(kept) if message.t_end_ns <= t_end_ns), None)
        counted = next((message for message in reversed(kept) if _counts_from_ns(message) <= t_end_ns), None)
        coming = (at_ns for message in kept for at_ns in (message.t_end_ns, _counts_from_ns(message)))
        changes = [1 << 62, *(at_ns for at_ns in coming if at_ns > t_end_ns)]
        times_ns = np.zeros(0, np.int64)
        features, mask = last_rows(self.spec, np.zeros((0, self.spec.dim), np.float32))
        words: tuple[Word, ...] = ()
        phrases: tuple[Phrase, ...] = ()
        reason = ""
        since_ns = NEVER
        ends_ns: list[int] = []
        if counted is not None:
            inside = counted.valid & (counted.times_ns > t_end_ns - WINDOW_NS)
            features, mask = place_rows(self.spec, counted.values, inside, counted.times_ns, t_end_ns)
            times_ns = counted.times_ns[inside & (counted.times_ns <= t_end_ns)]
            ends_ns += counted.times_ns.tolist()
            reason = "" if mask.any() else counted.reason
        if shown is not None:
            words = tuple(word for word in shown.words if word.t_end_ns > t_end_ns - WINDOW_NS)
            phrases = tuple(phrase for phrase in shown.phrases if phrase.t_end_ns > t_end_ns - WINDOW_NS)
            ends_ns += [word.t_end_ns for word in shown.words]
            since_ns = t_end_ns
        changes += [at_ns for end_ns in ends_ns for at_ns in (end_ns, end_ns + WINDOW_NS) if at_ns > t_end_ns]
        if not (np.array_equal(self.mask[place], mask) and np.array_equal(self.features[place], features)):
            self.features[place], self.mask[place] = features, mask
            self._fresh[place] = True
            if self.written is not None:
                self.written.append(place)
        self._since_ns[place], self._until_ns[place] = since_ns, min(changes)
        self._newest_ns[place] = int(times_ns.max()) if len(times_ns) else NEVER
        self.reasons[place] = reason
        self.phrases[place] = phrases
        if words != self.words[place]:
            self.words[place] = words
            self.transcripts[place] = Transcript(
                " ".join(word.text for word in words if word.committed and not word.uncertain),
                " ".join(word.text for word in words if not word.committed and not word.uncertain),
                " ".join(word.text for word in words if word.uncertain),
            )


def _counts_from_ns(message: FeatureWindow) -> int:
    return max(message.t_end_ns, message.counts_from_ns)
