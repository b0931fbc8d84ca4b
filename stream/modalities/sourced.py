"""The base of modalities with a device or clip as source, which can be switched at run time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from mien.clock import Clock
from mien.config import Config
from mien.errors import SourceError, WorkerError
from mien.stream.modalities.base import Health, Modality
from mien.stream.processes.plan import with_source
from mien.stream.sources.address import Device, address_of
from mien.stream.sources.audio import open_audio
from mien.stream.sources.source import AudioSource, Source

Detail = dict[str, str | float | int | bool | None]
AnySource = TypeVar("AnySource", bound=Source[Any])


class Sourced(Modality, Generic[AnySource]):
    """A modality with a source, opened by `prepare` and started by `start`."""

    section: ClassVar[str]  # of the configuration, which names the source

    def __init__(self, config: Config, clock: Clock, open_source: Callable[[Config, Clock], AnySource]) -> None:
        self._config, self._clock, self._open_source = config, clock, open_source
        self._opened: AnySource | None = None
        self._start_ns = self._sent_ns = 0  # when it was started, and the end of the last message
        self._chosen = False  # whether the source was chosen at run time

    @property
    def used(self) -> str:
        return str(getattr(self._config, self.section).source)

    def use(self, source: str) -> None:
        config = with_source(self._config, self.section, source)
        self._change(config)
        self._config, self._chosen = config, True

    def prepare(self) -> None:
        self._opened = self._open_source(self._config, self._clock)

    def start(self, start_ns: int) -> None:
        self._start_ns = self._sent_ns = start_ns
        self._source.start(start_ns)

    def health(self) -> Health:
        source = self._opened
        if source is None:
            return Health(state="starting")
        detail: Detail = {"source": source.name, "chosen": self._chosen, **self._detail(source)}
        return Health(state=source.state, drops=dict(source.drops), last_error=source.error, detail=detail)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def _source(self) -> AnySource:
        assert self._opened is not None, "prepare() comes first"
        return self._opened

    @abstractmethod
    def _change(self, config: Config) -> None:
        """Switch to another configuration's source.

        Raises:
            SourceError: it cannot be opened; the current one stays in use.
            WorkerError: the previous one cannot be reopened either.
        """

    @abstractmethod
    def _detail(self, source: AnySource) -> Detail:
        """The modality's part of a status, besides its source's name, once that is open."""


class Hearing(Sourced[AudioSource]):
    """A modality based on audio."""

    section = "audio"

    def __init__(
        self, config: Config, clock: Clock, open_source: Callable[[Config, Clock], AudioSource] = open_audio
    ) -> None:
        super().__init__(config, clock, open_source)

    def _change(self, config: Config) -> None:
        # Close the old one first: some systems do not open a device twice, and PortAudio enumerates only while no
        # device is open.
        self._source.close()
        try:
            if isinstance(address_of(config.audio.source), Device):
                from mien.stream.sources.microphone import look_anew

                look_anew()
            self._opened = self._started(config)
        except (SourceError, OSError) as error:
            try:
                self._opened = self._started(self._config)
            except SourceError as lost:
                raise WorkerError(f"{error}; the previous source is gone too: {lost}") from error
            raise SourceError(str(error)) from error

    def _started(self, config: Config) -> AudioSource:
        opened = open_audio(config, self._clock)
        try:
            opened.start(self._start_ns)
        except SourceError:
            opened.close()
            raise
        return opened
