"""The interface between a modality and the capture process that runs it.

A new modality is one file in `stream/modalities/` with a `create(config, clock)` function that returns a `Modality`.
`stream/capture/` does the rest: sockets, sequence numbers, status, stopping.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from mien.clock import Clock
from mien.config import Config
from mien.errors import SourceError
from mien.messages import WORKERS, FeatureWindow, Float32, ModalitySpec, WorkerState
from mien.stream.bus.wire import sent_times_ns
from mien.stream.modalities.resting import Resting
from mien.stream.sources.source import Chunk


@dataclass(frozen=True)
class Faces:
    """The faces in view, for sources where one can be chosen.

    Attributes:
        boxes: left, top, right and bottom of each as fractions of the picture, from left to right.
        following: the largest, or one that was chosen.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    following: Literal["largest", "chosen"]


def message_of(rows: FeatureWindow, spec: ModalitySpec, *, session: str, run: int, seq: int) -> FeatureWindow:
    """Rows as the reader of their message has them, for use in this process."""
    return msgspec.structs.replace(
        rows,
        session=session,
        modality=spec.name,
        run=run,
        seq=seq,
        extractor=spec.extractor,
        times_ns=sent_times_ns(rows.times_ns, rows.t_start_ns, rows.t_end_ns),
    )


@dataclass(frozen=True, eq=False)
class Picture:
    """The frame that a row was computed from, for previews.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        landmarks: (n, 2) float32, pixels, the centre of the first pixel is (0, 0); None without a face.
        edges: returns the pairs of landmarks to connect, (n, 2).
        faces: those in view.
    """

    image: npt.NDArray[np.uint8]
    landmarks: Float32 | None
    edges: Callable[[], npt.NDArray[Any]]
    faces: Faces | None = None


@dataclass(frozen=True)
class Health:
    """A modality's health. `drops` counts since the start, by cause."""

    state: WorkerState = "running"
    drops: dict[str, int] = field(default_factory=dict)
    last_error: str | None = None
    detail: dict[str, str | float | int | bool | None] = field(default_factory=dict)


class Modality(ABC):
    """A source and its extractor, run by a capture process."""

    spec: ModalitySpec

    @property
    @abstractmethod
    def used(self) -> str:
        """The current source, as written in the configuration."""

    @abstractmethod
    def use(self, source: str) -> None:
        """Switch to another source. Called between two rows, from the same thread.

        Raises:
            SourceError: it cannot be opened; the current one stays in use.
        """

    def faces(self) -> Faces | None:
        """The faces that `follow` chooses among; None if faces cannot be chosen."""
        return None

    def follow(self, place: tuple[float, float] | None) -> None:
        """Follow the face at a point, x and y as fractions of the picture, while it is there; None: the largest.

        Raises:
            SourceError: this modality does not detect faces.
        """
        raise SourceError(f"there are no faces to choose among in {self.spec.name} (place {place})")

    def measure(self, seconds: float | None) -> None:
        """Measure a person at rest from the rows of the next seconds; None: cancel.

        Raises:
            SourceError: this modality cannot be measured at rest.
        """
        raise SourceError(f"{self.spec.name} cannot measure a person at rest (for {seconds} s)")

    @property
    def resting(self) -> Resting | None:
        """The current or finished measurement; None if there is none."""
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Load the models and open the source.

        Raises:
            MienError: what is missing and what to do about it.
        """

    @abstractmethod
    def start(self, start_ns: int) -> None:
        """Start capturing. A clip's time zero is `start_ns`; a device uses its own times."""

    @abstractmethod
    def rows(self) -> Iterator[FeatureWindow | None]:
        """Rows as they become ready; None at least every 100 ms while there are none. Ends with the clip.

        They have no session, modality, run, number or extractor yet: the process that publishes them adds these.

        A lost device never ends the iterator: it keeps yielding None, reports why in `health()`, and tries to reopen
        the device.
        """

    @abstractmethod
    def health(self) -> Health:
        """The modality's current health. Called from the same thread as `rows()`."""

    def picture(self) -> Picture | None:
        """The frame that the last rows were computed from; None if rows do not come from frames."""
        return None

    def take_sound(self) -> Iterable[Chunk]:
        """The audio since the last call, if it may be shared; otherwise nothing."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Release device and models. May be called twice, and after a failed `prepare()`."""


def create_modality(worker: str, config: Config, clock: Clock) -> Modality:
    """The modality of a worker ("video", "audio", "text"), not yet prepared."""
    module = importlib.import_module(f"mien.stream.modalities.{WORKERS[worker]}")
    modality: Modality = module.create(config, clock)
    return modality
