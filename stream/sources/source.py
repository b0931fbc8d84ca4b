"""The interface of every video or audio source: device, network camera or clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from mien.clock import NS_PER_S
from mien.messages import Float32, UInt8, WorkerState

SAMPLE_RATE = 16_000
NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE  # 62,500 exactly: integer time never drifts
JOIN_NS = NS_PER_S  # a paced clip started later than this joins where it is by then


@dataclass(frozen=True)
class Chunk:
    """A chunk of audio.

    Attributes:
        samples: shape (n,), mono, 16 kHz, float32, finite.
        t_start_ns: capture time of the first sample; sample i is `i * NS_PER_SAMPLE` later.
        read_ns: session time at which it was delivered.
        continuous: False if samples are missing before this chunk, or it is the first: reset filters.
    """

    samples: Float32
    t_start_ns: int
    read_ns: int
    continuous: bool = True

    @property
    def t_end_ns(self) -> int:
        """Capture time of the end of the last sample."""
        return self.t_start_ns + len(self.samples) * NS_PER_SAMPLE


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        image: (H, W, 3) uint8, BGR, upright, with square pixels.
        t_ns: capture time.
        read_ns: session time at which it was delivered by the driver, the network or the clip's pace.
    """

    image: UInt8
    t_ns: int
    read_ns: int


T = TypeVar("T")


class Source(ABC, Generic[T]):
    """A device, a network camera, or a clip's picture or sound, in `Frame` or `Chunk`.

    Attributes:
        name: for display; without any password from a URL.
        state: "ready" before `start`, "running", "degraded" while a device is lost, "ended" after a clip.
        error: why it is degraded, or why a clip ended early; None when all is well.
        drops: losses since the start, by cause: audio samples, or frames that `read` never returned.
        reopened: how often a lost camera was reopened.
    """

    name: str = ""
    state: WorkerState = "ready"
    error: str | None = None
    reopened: int = 0

    def __init__(self) -> None:
        self.drops: dict[str, int] = {}

    @abstractmethod
    def start(self, start_ns: int) -> None:
        """Begin. A clip's time zero is `start_ns`; a device uses its own times."""

    @abstractmethod
    def read(self, timeout: float) -> T | None:
        """The next frame, with a later capture time than the last, or chunk, of at most `audio.chunk_ms`.

        None after `timeout` seconds without any.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device or the file. May be called twice."""

    @property
    def ended(self) -> bool:
        """Whether the source is finished: a clip that is over. A lost device has not ended."""
        return self.state == "ended"

    def count(self, cause: str, number: int = 1) -> None:
        self.drops[cause] = self.drops.get(cause, 0) + number


AudioSource: TypeAlias = Source[Chunk]
VideoSource: TypeAlias = Source[Frame]
