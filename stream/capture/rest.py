"""Measuring a person at rest, from camera and microphone or a clip, for `mien.models.baseline`."""

from __future__ import annotations

import threading
from typing import NamedTuple

from mien.clock import Clock
from mien.config import Config
from mien.errors import MienError, SourceError
from mien.models.baseline import Rest
from mien.stream.modalities.base import Modality, create_modality

_JOIN_S = 10.0
_WORKERS = ("video", "audio")  # whose rows can be measured at rest


class Measured(NamedTuple):
    """The measurements; None for what was not requested."""

    face: Rest | None
    voice: Rest | None


class Measurement:
    """Measures from `start` on, with a session's modalities.

    Args:
        config: with resolved sources, from `plan_session`, and without a person.
        workers: to measure: "video", "audio", or both.
        seconds: for how long. A shorter clip is measured to its end.

    Raises:
        MienError: a device, a clip or a pretrained file cannot be opened.
    """

    def __init__(self, config: Config, workers: tuple[str, ...], seconds: float) -> None:
        self._clock = Clock()
        self._stopping = threading.Event()
        modalities = {name: create_modality(name, config, self._clock) for name in workers if name in _WORKERS}
        self._parts = {name: _Part(modality, self._stopping) for name, modality in modalities.items()}
        try:
            for modality in modalities.values():
                modality.prepare()
                modality.measure(seconds)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start measuring, once the person has been told."""
        start_ns = self._clock.now_ns()
        for part in self._parts.values():
            part.begin(start_ns)

    @property
    def done(self) -> bool:
        """Whether everything was measured for long enough, or has ended."""
        return not any(part.is_alive() for part in self._parts.values())

    def stop(self) -> None:
        """Stop now, for instance if a device delivers nothing."""
        self._stopping.set()

    def result(self) -> Measured:
        """The measurements.

        Raises:
            MienError: a device was lost, or there was too little face or voice. Nothing is stored then.
        """
        found: dict[str, Rest] = {}
        missing: list[str] = []
        for worker, part in self._parts.items():
            part.join(_JOIN_S)
            try:
                found[worker] = part.rest()
            except MienError as error:
                missing.append(str(error))
        if missing:
            raise SourceError("nothing was stored: " + "; ".join(missing))
        return Measured(found.get("video"), found.get("audio"))

    def close(self) -> None:
        """Release devices and models."""
        self._stopping.set()
        for part in self._parts.values():
            part.close()


class _Part(threading.Thread):
    """One modality, in its own thread."""

    def __init__(self, modality: Modality, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self._modality, self._stopping = modality, stopping
        self._error: MienError | None = None

    def begin(self, start_ns: int) -> None:
        self._modality.start(start_ns)
        self.start()

    def run(self) -> None:
        try:
            for _ in self._modality.rows():
                measured = self._modality.resting
                if self._stopping.is_set() or measured is None or measured.left_s == 0:
                    return
        except MienError as error:
            self._error = error

    def rest(self) -> Rest:
        if self._error is not None:
            raise self._error
        if (lost := self._modality.health().last_error) is not None:
            raise SourceError(lost)
        assert self._modality.resting is not None, "measure() comes first"
        return self._modality.resting.result()

    def close(self) -> None:
        if self.ident is not None:
            self.join(_JOIN_S)
        self._modality.close()
