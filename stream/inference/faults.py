"""Faults of a session: which modalities are masked because of one.

Pure: no clock, no socket.

Faults are reported by a modality's worker, whose device may be lost, and by the supervisor if the worker's process
cannot. Rows of a dead process may still arrive after its death is known, so only rows of its successor clear that
fault.
"""

from __future__ import annotations


class Faults:
    """Faults by modality."""

    def __init__(self) -> None:
        self._reported: dict[str, str] = {}  # by the worker
        self._late: dict[str, str] = {}  # by the supervisor, for an unresponsive process
        self._dead: dict[str, str] = {}  # likewise, for a dead one
        self._runs: dict[str, int] = {}

    def note_worker(self, modality: str, fault: str | None) -> None:
        """A fault reported by the worker itself; None: healthy."""
        if fault is None:
            self._reported.pop(modality, None)
        else:
            self._reported[modality] = fault

    def note_process(self, modality: str, fault: str, *, dead: bool) -> None:
        """A fault of the worker's process, reported by the supervisor."""
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
        """Rows of this run of the worker arrived. Returns whether that clears a fault."""
        if self._runs.get(modality) == run:
            return False
        self._runs[modality] = run
        return self._dead.pop(modality, None) is not None

    def reasons(self) -> dict[str, str]:
        """Modalities to mask, with the reason."""
        return {**self._reported, **self._late, **self._dead}
