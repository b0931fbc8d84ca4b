"""Which modalities must not be believed now, and why. Pure: no clock, no socket.

Two speak of a modality: its worker, whose device may be lost, and the supervisor, whose word counts when the worker
cannot speak. Rows from a process that died may still be under way when its death is known, so only rows of its
successor end that.
"""

from __future__ import annotations


class Faults:
    """Faults by modality."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}  # by the worker
        self._late: dict[str, str] = {}  # by the supervisor, of a process that may yet answer
        self._dead: dict[str, str] = {}  # likewise, of one that is gone
        self._runs: dict[str, int] = {}

    def say(self, modality: str, fault: str | None) -> None:
        """What the worker says of itself; None: it is well."""
        if fault is None:
            self._said.pop(modality, None)
        else:
            self._said[modality] = fault

    def blame(self, modality: str, fault: str, *, dead: bool) -> None:
        """What the supervisor says of the worker's process."""
        if dead:
            # What the dead one said last is no longer of interest.
            self._said.pop(modality, None)
            self._late.pop(modality, None)
            self._dead[modality] = fault
        else:
            self._late[modality] = fault

    def answers(self, modality: str) -> None:
        """The supervisor hears the process again."""
        self._late.pop(modality, None)

    def hear(self, modality: str, run: int) -> bool:
        """Rows came, from this run of the worker. Returns whether that ends a fault."""
        if self._runs.get(modality) == run:
            return False
        self._runs[modality] = run
        return self._dead.pop(modality, None) is not None

    def reasons(self) -> dict[str, str]:
        """Per modality that is to be masked, why."""
        return {**self._said, **self._late, **self._dead}
