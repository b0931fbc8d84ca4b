"""Audio as a stream: a microphone, or a clip standing in for one. Mono, 16 kHz, float32, with timestamps.

    source = open_audio(config, clock)
    source.start(start_ns)
    while not source.ended:
        chunk = source.read(timeout=0.1)

The audio and the text worker each open their own source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import Config
from mien.errors import SourceError
from mien.messages import Float32
from mien.stream.sources.address import File, Url, address_of
from mien.stream.sources.clip import SLOT_S, open_clip
from mien.stream.sources.source import JOIN_NS, NS_PER_SAMPLE, SAMPLE_RATE, AudioSource, Chunk


def open_audio(config: Config, clock: Clock) -> AudioSource:
    """Open, but do not start, the source named by `config.audio.source`.

    Raises:
        SourceError: there is no such microphone (the message lists the available ones), the clip cannot be read
            or has no sound, or the source is "none".
    """
    address = address_of(config.audio.source)
    if address is None:
        raise SourceError("the sound is turned off (audio.source is none)")
    if isinstance(address, File):
        return ClipSound(address.path, config, clock)
    if isinstance(address, Url):
        raise SourceError(
            f"sound cannot come from the network ({address.name}); set audio.source to a microphone, a file or none"
        )
    from mien.stream.sources.microphone import Microphone

    return Microphone(address.name, config, clock)


class ClipSound(AudioSource):
    """A clip's audio, paced by the session's clock, or with `clip.fast` as fast as it is read.

    Sample n has capture time `start_ns + n * NS_PER_SAMPLE`, even across loops; each loop is padded or cut to the
    clip's length. When paced, a chunk is delivered when its end is due, as from a microphone; nothing is ever dropped.
    Audio that cannot be decoded to its end stops there, and `error` says why.
    """

    def __init__(self, path: Path, config: Config, clock: Clock) -> None:
        super().__init__()
        self._clip = open_clip(path, config.clip, "sound")
        self.name = self._clip.name
        self._clock = clock
        self._paced = not config.clip.fast
        self._loop = config.clip.loop
        self._loop_samples = round(self._clip.duration_s * SAMPLE_RATE)
        self._chunk_samples = config.audio.chunk_ms * SAMPLE_RATE // 1000
        self._start_ns = 0
        self._position = 0  # samples delivered
        self._waiting = np.zeros(0, np.float32)
        self._pieces = self._played()
        self._from_sample = 0  # where to start
        self._fresh = True

    def start(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self.state = "running"
        late_ns = self._clock.now_ns() - start_ns
        if self._paced and late_ns > JOIN_NS:
            # A restarted worker must not replay what was missed.
            slot = round(SLOT_S * SAMPLE_RATE)
            self._from_sample = late_ns // NS_PER_SAMPLE // slot * slot
            if self._loop:
                self._position = self._from_sample // self._loop_samples * self._loop_samples

    def read(self, timeout: float) -> Chunk | None:
        if self.state != "running":
            return None
        until_ns = self._clock.now_ns() + round(timeout * NS_PER_S)
        while self._position < self._from_sample:
            self._fill()
            if not len(self._waiting):
                break
            self._take(self._from_sample - self._position)
            if self._clock.now_ns() > until_ns:
                return None
        self._fill()
        size = min(self._chunk_samples, len(self._waiting))
        if size == 0:
            self.state = "ended"
            return None
        if self._paced:
            due_ns = self._start_ns + (self._position + size) * NS_PER_SAMPLE
            early_s = (due_ns - self._clock.now_ns()) / NS_PER_S
            if early_s > 0:
                time.sleep(min(early_s, max(timeout, 0.0)))
            if self._clock.now_ns() < due_ns - NS_PER_MS:
                return None
        t_start_ns = self._start_ns + self._position * NS_PER_SAMPLE
        read_ns = self._clock.now_ns() if self._paced else t_start_ns + size * NS_PER_SAMPLE
        continuous, self._fresh = not self._fresh, False
        return Chunk(self._take(size), t_start_ns, read_ns, continuous)

    def close(self) -> None:
        self.state = "ended"
        self._waiting = np.zeros(0, np.float32)
        self._pieces = iter(())

    def _fill(self) -> None:
        """Decode until a whole chunk is buffered, or the clip ends."""
        while len(self._waiting) < self._chunk_samples and (piece := next(self._pieces, None)) is not None:
            self._waiting = np.concatenate([self._waiting, piece])

    def _played(self) -> Iterator[Float32]:
        """The decoded audio; endless if it loops."""
        while True:
            decoded = 0
            try:
                for piece in self._clip.sound():
                    whole = piece[: self._loop_samples - decoded] if self._loop else piece
                    decoded += len(whole)
                    yield whole
            except SourceError as error:
                # It would fail there again: do not loop or restart.
                self.error = str(error)
                return
            if not self._loop:
                return
            yield np.zeros(self._loop_samples - decoded, np.float32)

    def _take(self, size: int) -> Float32:
        """The next samples, at most `size`."""
        taken, self._waiting = self._waiting[:size], self._waiting[size:]
        self._position += len(taken)
        return taken
