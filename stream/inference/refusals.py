"""What was not believed, and how often."""

from __future__ import annotations

from collections import Counter


class Refusals:
    """Counts by cause, and the last one in words.

    Attributes:
        counts: by cause, as a status lists them. last: for people; None if there was none.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.last: str | None = None

    def note(self, cause: str, explanation: str) -> None:
        """One more."""
        self.counts[cause] += 1
        self.last = explanation
