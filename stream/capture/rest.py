"""A person at rest, measured before the camera and the microphone or in a clip, for `mien.models.baseline`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import NamedTuple

from mien.clock import NS_PER_S, Clock
from mien.config import Config
from mien.errors import MienError, SourceError
from mien.models.baseline import Rest
from mien.models.weights import weight_set
from mien.stream.modalities.audio import AudioExtractor, voice_resting
from mien.stream.modalities.resting import Resting
from mien.stream.modalities.vision import VisionExtractor, face_resting, vision_spec
from mien.stream.sources.audio import open_audio
from mien.stream.sources.source import AudioSource, VideoSource
from mien.stream.sources.video import open_video

_JOIN_S = 10.0


class Measured(NamedTuple):
    """What was found of a person; None of what was not wanted."""

    face: Rest | None
    voice: Rest | None


class Measurement:
    """Looks and listens from `start` on, through the extractors of a session.

    Args:
        config: with sources that are decided, as `plan_session` gives it.
        workers: "video", "audio", or both: what is measured.
        seconds: for how long. A clip that ends before is measured to its end.

    Raises:
        MienError: a device, a clip or a pretrained file cannot be opened.
    """

    def __init__(self, config: Config, workers: tuple[str, ...], seconds: float) -> None:
        clock = Clock()
        self._seconds, self._clock = seconds, clock
        self._stopping = threading.Event()
        kinds = {"video": _Face, "audio": _Voice}
        self._parts: dict[str, _Part] = {}
        try:
            for worker in workers:
                if worker in kinds:
                    self._parts[worker] = kinds[worker](config, clock, seconds, self._stopping)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begin, now that the person knows."""
        start_ns = self._clock.now_ns()
        for part in self._parts.values():
            part.begin(start_ns)

    @property
    def done(self) -> bool:
        """Whether all is seen and heard."""
        return not any(part.is_alive() for part in self._parts.values())

    def stop(self) -> None:
        """Enough, even of a device that gives nothing."""
        self._stopping.set()

    def result(self) -> Measured:
        """What was measured.

        Raises:
            SourceError: a device failed, or no face or voice was there for long enough; says what was missing.
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
            raise SourceError("nothing was kept: " + "; ".join(missing))
        return Measured(found.get("video"), found.get("audio"))

    def close(self) -> None:
        """Stop, and release devices."""
        self._stopping.set()
        for part in self._parts.values():
            if part.ident is not None:
                part.join(_JOIN_S)
            part.close()


class _Part(threading.Thread, ABC):
    """One modality, in a thread of its own."""

    def __init__(
        self, source: VideoSource | AudioSource, seconds: float, resting: Resting, stopping: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        self._source, self._resting, self._stopping = source, resting, stopping
        self._span_ns = round(seconds * NS_PER_S)
        self._end_ns = 0
        self._error: MienError | None = None

    def begin(self, start_ns: int) -> None:
        self._end_ns = start_ns + self._span_ns
        self._source.start(start_ns)
        self.start()

    def run(self) -> None:
        try:
            while not self._source.ended and not self._stopping.is_set() and self._step():
                pass
        except MienError as error:
            self._error = error

    def rest(self) -> Rest:
        """What was measured.

        Raises:
            MienError: too little of it was there, or the device failed.
        """
        if self._error is not None:
            raise self._error
        if self._source.error:
            raise SourceError(self._source.error)
        return self._resting.result()

    def close(self) -> None:
        self._source.close()

    @abstractmethod
    def _step(self) -> bool:
        """Take in what comes next; False if it is over."""


class _Face(_Part):
    def __init__(self, config: Config, clock: Clock, seconds: float, stopping: threading.Event) -> None:
        source = open_video(config, clock)
        weights = weight_set(config.inference.checkpoint).face
        super().__init__(source, seconds, face_resting(seconds, vision_spec(weights).extractor), stopping)
        self._extractor = VisionExtractor(config.assets, config.video.max_faces, weights)
        self._extractor.resting, self._video = self._resting, source

    def _step(self) -> bool:
        frame = self._video.read(timeout=0.1)
        if frame is None:
            return True
        if frame.t_ns >= self._end_ns:
            return False
        self._extractor.row(frame.image, frame.t_ns)
        return True

    def close(self) -> None:
        super().close()
        self._extractor.close()


class _Voice(_Part):
    def __init__(self, config: Config, clock: Clock, seconds: float, stopping: threading.Event) -> None:
        source = open_audio(config, clock)
        super().__init__(source, seconds, voice_resting(seconds), stopping)
        self._extractor = AudioExtractor(config.assets)
        self._extractor.resting, self._sound = self._resting, source

    def _step(self) -> bool:
        chunk = self._sound.read(timeout=0.1)
        if chunk is None:
            return True
        if chunk.t_start_ns >= self._end_ns:
            return False
        if not chunk.continuous:
            self._extractor.reset()
        self._extractor.push(chunk.samples)
        return True
