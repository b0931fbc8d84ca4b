"""What goes wrong in a session: which modalities are masked because of a fault, and what was not believed.

Pure: no clock, no socket.

Faults are reported by a modality's worker, whose device may be lost, and by the supervisor where the worker's process
cannot report. Rows of a process that died may still arrive after its death is known, so only rows of its successor end
that fault.
"""

from __future__ import annotations

from collections import Counter


class Faults:
    """Faults by modality."""

    def __init__(self) -> None:
        self._reported: dict[str, str] = {}  # by the worker
        self._late: dict[str, str] = {}  # by the supervisor, of a process that may yet answer
        self._dead: dict[str, str] = {}  # likewise, of one that is gone
        self._runs: dict[str, int] = {}

    def note_worker(self, modality: str, fault: str | None) -> None:
        """What the worker reports of itself; None: it is well."""
        if fault is None:
            self._reported.pop(modality, None)
        else:
            self._reported[modality] = fault

    def note_process(self, modality: str, fault: str, *, dead: bool) -> None:
        """What the supervisor reports of the worker's process."""
        if dead:
            # Its own last report no longer counts.
            self._reported.pop(modality, None)
            self._late.pop(modality, None)
            self._dead[modality] = fault
        else:
            self._late[modality] = fault

    def clear_process(self, modality: str) -> None:
        """The process responds again."""
        self._late.pop(modality, None)

    def note_run(self, modality: str, run: int) -> bool:
        """Rows came, from this run of the worker. Returns whether that ends a fault."""
        if self._runs.get(modality) == run:
            return False
        self._runs[modality] = run
        return self._dead.pop(modality, None) is not None

    def reasons(self) -> dict[str, str]:
        """Per modality that is to be masked, why."""
        return {**self._reported, **self._late, **self._dead}


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
