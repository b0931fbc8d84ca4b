"""What the modalities that are made from sound have in common: where it comes from, and another source in its place."""

from __future__ import annotations

from mien.clock import Clock
from mien.config import Config
from mien.stream.modalities.base import Modality
from mien.stream.processes.plan import with_source
from mien.stream.sources.audio import SourceChangeError, change_audio
from mien.stream.sources.source import AudioSource


class Hearing(Modality):
    """A modality with a source of sound, which `prepare` opens and `start` starts."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._source: AudioSource | None = None
        self._start_ns = 0
        self._chosen = False  # whether the source was chosen while it runs

    @property
    def used(self) -> str:
        return self._config.audio.source

    def use(self, source: str) -> None:
        assert self._source is not None, "prepare() comes first"
        config = with_source(self._config, "audio", source)
        try:
            self._source = change_audio(self._source, self._config, config, self._clock, self._start_ns)
        except SourceChangeError as error:
            self._source = error.kept
            raise
        self._config, self._chosen = config, True
