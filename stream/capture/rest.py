"""Measuring a person at rest, from camera and microphone or a clip, for `mien.models.baseline`."""

from __future__ import annotations

import threading

from mien.clock import Clock
from mien.closing import Closing
from mien.config import Config
from mien.errors import MienError, SourceError
from mien.models.baseline import Rest
from mien.stream.modalities.base import Modality, create_modality

_JOIN_S = 10.0
_WORKERS = ("video", "audio")  # whose rows can be measured at rest


class Measurement(Closing):
    """Measures from `start` on, with a session's modalities, each in its own thread.

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
        self._errors: dict[str, MienError] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._modalities = {name: create_modality(name, config, self._clock) for name in workers if name in _WORKERS}
        try:
            for modality in self._modalities.values():
                modality.prepare()
                modality.measure(seconds)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start measuring, once the person has been told."""
        start_ns = self._clock.now_ns()
        for worker, modality in self._modalities.items():
            modality.start(start_ns)
            self._threads[worker] = threading.Thread(target=self._measure, args=(worker, modality), daemon=True)
            self._threads[worker].start()

    @property
    def done(self) -> bool:
        """Whether everything was measured for long enough, or has ended."""
        return not any(thread.is_alive() for thread in self._threads.values())

    def stop(self) -> None:
        """Stop now, for instance if a device delivers nothing."""
        self._stopping.set()

    def result(self) -> dict[str, Rest]:
        """The measurement of each worker.

        Raises:
            MienError: a device was lost, or there was too little face or voice. Nothing is stored then.
        """
        found: dict[str, Rest] = {}
        missing: list[str] = []
        for worker, modality in self._modalities.items():
            self._threads[worker].join(_JOIN_S)
            try:
                lost = self._errors.get(worker) or modality.health().last_error
                if lost is not None:
                    raise SourceError(str(lost))
                assert modality.resting is not None, "measure() comes first"
                found[worker] = modality.resting.result()
            except MienError as error:
                missing.append(str(error))
        if missing:
            raise SourceError("nothing was stored: " + "; ".join(missing))
        return found

    def close(self) -> None:
        """Release devices and models."""
        self._stopping.set()
        for thread in self._threads.values():
            thread.join(_JOIN_S)
        for modality in self._modalities.values():
            modality.close()

    def _measure(self, worker: str, modality: Modality) -> None:
        try:
            for _ in modality.rows():
                measured = modality.resting
                if self._stopping.is_set() or measured is None or measured.left_s == 0:
                    return
        except MienError as error:
            self._errors[worker] = error
