"""A microphone through PortAudio. It may be unplugged and plugged in again while mien runs.

The driver's thread only copies. Everything else, from downmixing to reopening a lost device, runs in the reading
thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from mien.clock import NS_PER_S, Clock
from mien.config import Config
from mien.errors import SourceError
from mien.stream.sources.source import SAMPLE_RATE, AudioSource, Chunk
from mien.stream.sources.waveform import Downmix

BUFFER_S = 5.0  # audio that may be buffered for the reader
LATENCY_S = 0.05  # requested from the driver
QUIET_S = 0.4  # a device that delivers nothing for this long is reported as silent
SILENT_S = 2.5  # a device that delivers nothing for this long is lost; some need 2 s for their first samples
RETRY_S = 1.0
SETTLE_S = 2.0  # time constant for following the driver's timestamps
JUMP_S = 0.5  # a driver's timestamp this far from the sample count: samples are missing
DEVICES_LISTED = 8


class SampleClock:
    """Sample capture times: the count over the rate, plus an offset that slowly follows the driver's timestamps.

    A driver's timestamps jitter by a block, and its crystal drifts some 50 ppm from the session's clock; the count
    alone drifts, the timestamps alone jitter.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._offset_ns: float | None = None
        self._heard_s = 0.0

    def observe(self, index: int, t_ns: int, count: int) -> bool:
        """The driver reports that sample `index`, the first of `count`, was captured at `t_ns`.

        Returns:
            False if that is too far off for jitter: samples are missing, and a new clock is needed.
        """
        offset_ns = t_ns - index * NS_PER_S / self._rate
        if self._offset_ns is None:
            self._offset_ns = offset_ns
        error_ns = offset_ns - self._offset_ns
        if abs(error_ns) > JUMP_S * NS_PER_S:
            return False
        block_s = count / self._rate
        self._heard_s += block_s
        # A plain mean at first, so that an outlier at the start does not persist for seconds.
        self._offset_ns += error_ns * min(1.0, block_s / min(self._heard_s, SETTLE_S))
        return True

    def t_ns(self, index: float) -> int:
        assert self._offset_ns is not None, "observe() comes first"
        return round(self._offset_ns + index * NS_PER_S / self._rate)


@dataclass(frozen=True)
class _Block:
    index: int  # of its first sample, counted by the driver's thread, lost ones included
    t_ns: int
    samples: npt.NDArray[np.float32]  # shape (n, channels)
    overflow: bool


class Microphone(AudioSource):
    """A recording device: "auto" is the system's default, else its index or part of its name.

    Raises:
        SourceError: there is no such device, or it cannot be opened; the message lists the available ones.
    """

    def __init__(self, source: str, config: Config, clock: Clock) -> None:
        super().__init__()
        import sounddevice  # imported here: loads PortAudio, which enumerates devices

        self._sd: Any = sounddevice
        self._source = source
        self._clock = clock
        self._chunk_samples = config.audio.chunk_ms * SAMPLE_RATE // 1000
        self._stream: Any = None
        self._lost_at_ns = self._alive_ns = 0
        self._lost = False
        self._pending: _Block | None = None  # the first block after a gap
        self._open()

    def start(self, start_ns: int) -> None:  # noqa: ARG002
        try:
            with _quiet():
                self._stream.start()
        except self._sd.PortAudioError as error:
            raise SourceError(f"microphone {self.name!r} cannot be started: {_reason(error)}") from error
        self._alive_ns = self._clock.now_ns()
        self.state = "running"

    def read(self, timeout: float) -> Chunk | None:
        deadline_ns = self._clock.now_ns() + int(timeout * NS_PER_S)
        while self.state in ("running", "degraded"):
            if len(self._ready) >= self._chunk_samples or (len(self._ready) and self._pending is not None):
                return self._take()
            if self._pending is not None:
                self._begin_segment()
                self._accept(self._pending)
                self._pending = None
                continue
            wait_s = (deadline_ns - self._clock.now_ns()) / NS_PER_S
            try:
                block = self._blocks.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                self._watch()
                return None
            self._alive_ns = self._clock.now_ns()
            self.state, self.error, self._lost = "running", None, False
            self._follow(block)
        return None

    def close(self) -> None:
        self.state = "stopped"
        self._release()

    def _open(self) -> None:
        """Find and open the device, without recording yet."""
        sd = self._sd
        device = self._find()
        self.name = str(device["name"])
        # The device's own rate and our resampler: systems resample well, badly, or not at all.
        self._rate = float(device["default_samplerate"])
        channels = min(int(device["max_input_channels"]), 2)
        self._blocks: queue.SimpleQueue[_Block] = queue.SimpleQueue()
        self._captured = 0  # device samples counted by the driver's thread
        self._fetched = 0  # counted by the reader
        self._pending = None
        self._begin_segment()
        try:
            with _quiet():
                self._stream = sd.InputStream(
                    device=device["index"],
                    channels=channels,
                    samplerate=self._rate,
                    dtype="float32",
                    latency=LATENCY_S,
                    callback=self._copy,
                )
        except (sd.PortAudioError, ValueError) as error:
            raise SourceError(
                f"microphone {self.name!r} cannot be opened: {_reason(error)}; {self._listing()}"
            ) from error
        self._max_age_s = 2.0 * max(float(self._stream.latency), LATENCY_S)

    def _find(self) -> dict[str, Any]:
        sd = self._sd
        inputs = self._inputs()
        if not inputs:
            raise SourceError("there is no microphone; connect one, or set audio.source to a file or to none")
        if self._source == "auto":
            default = [entry for entry in inputs if entry["index"] == sd.default.device[0]]
            return (default or inputs)[0]
        if self._source.isdigit():
            found = [entry for entry in inputs if entry["index"] == int(self._source)]
        else:
            name = self._source.casefold()
            exact = [entry for entry in inputs if str(entry["name"]).casefold() == name]
            found = exact or [entry for entry in inputs if name in str(entry["name"]).casefold()]
        if not found:
            raise SourceError(f"there is no microphone {self._source!r}; {self._listing()}")
        return found[0]

    def _inputs(self) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self._sd.query_devices() if entry["max_input_channels"] > 0]

    def _listing(self) -> str:
        names = [f"{entry['index']} ({entry['name']})" for entry in self._inputs()]
        more = f" and {len(names) - DEVICES_LISTED} more" if len(names) > DEVICES_LISTED else ""
        return f"there are: {', '.join(names[:DEVICES_LISTED])}{more}" if names else "there is none"

    def _copy(self, data: npt.NDArray[np.float32], count: int, times: Any, status: Any) -> None:
        """Runs in the driver's thread: take the time, copy, return."""
        now_ns = self._clock.now_ns()
        waiting = self._captured - self._fetched
        index, self._captured = self._captured, self._captured + count
        if waiting > BUFFER_S * self._rate:
            return  # the reader sees the gap in the indices, and counts it
        # Some drivers give no timestamps, or stale ones while they start: a block is at least as old as it is long, and
        # not much older than the buffer.
        block_s = count / self._rate
        age_s = times.currentTime - times.inputBufferAdcTime if times.inputBufferAdcTime > 0 else 0.0
        age_s = min(max(age_s, block_s), block_s + self._max_age_s)
        t_ns = now_ns - int(age_s * NS_PER_S)
        self._blocks.put(_Block(index, t_ns, data.copy(), bool(status.input_overflow)))

    def _begin_segment(self) -> None:
        """Start over after a gap: clock, filter and buffer."""
        self._times = SampleClock(self._rate)
        self._downmix = Downmix(self._rate)
        self._resampler = (
            None if self._rate == SAMPLE_RATE else soxr.ResampleStream(self._rate, SAMPLE_RATE, 1, dtype="float32")
        )
        self._origin: int | None = None  # index of the segment's first sample
        self._ready = np.zeros(0, np.float32)
        self._taken = 0  # samples of the segment that were delivered

    def _follow(self, block: _Block) -> None:
        """Append a block, or keep it for the next segment if there is a gap before it."""
        missing = block.index - self._fetched
        self._fetched = block.index + len(block.samples)
        if missing > 0:
            self._drop("reader too slow", missing)
        elif block.overflow:
            self._drop("device overflow", len(block.samples))
        first = self._origin is None
        whole = missing <= 0 and not block.overflow
        if first or (whole and self._times.observe(block.index, block.t_ns, len(block.samples))):
            self._accept(block)
            return
        if whole:
            self._drop("clock jump", 0)
        self._pending = block

    def _drop(self, cause: str, count: int) -> None:
        self.count(cause, max(1, round(count * SAMPLE_RATE / self._rate)))

    def _accept(self, block: _Block) -> None:
        if self._origin is None:
            self._origin = block.index
            self._times.observe(block.index, block.t_ns, len(block.samples))
        mono = self._downmix(np.nan_to_num(block.samples.T))
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono)
        self._ready = np.concatenate([self._ready, mono])

    def _take(self) -> Chunk:
        taken, self._ready = self._ready[: self._chunk_samples], self._ready[self._chunk_samples :]
        assert self._origin is not None
        t_start_ns = self._times.t_ns(self._origin + self._taken * self._rate / SAMPLE_RATE)
        continuous = self._taken > 0
        self._taken += len(taken)
        return Chunk(taken, t_start_ns, self._clock.now_ns(), continuous)

    def _watch(self) -> None:
        """Nothing came: if the device is gone, try to reopen it, once a second."""
        now_ns = self._clock.now_ns()
        if self._stream is not None:
            silent_s = (now_ns - self._alive_ns) / NS_PER_S
            if self._stream.active and silent_s < SILENT_S:
                # It may just have been opened, and be about to deliver.
                if self.state == "running" and silent_s > QUIET_S:
                    self.state, self.error = "degraded", f"microphone {self.name!r} delivers no sound"
                return
            self.state = "degraded"
            self.error = f"microphone {self.name!r} was lost; it is opened again when it is back"
            if not self._lost:
                self._lost_at_ns = now_ns
                self._lost = True
            self._release()
            return
        if now_ns - self._lost_at_ns >= RETRY_S * NS_PER_S:
            self._lost_at_ns = now_ns
            self._reopen()

    def _reopen(self) -> None:
        try:
            look_anew()  # only then does a reconnected device appear
            self._open()
            with _quiet():
                self._stream.start()
            self._alive_ns = self._clock.now_ns()
        except (SourceError, self._sd.PortAudioError):
            self._release()

    def _release(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(self._sd.PortAudioError), _quiet():
                stream.abort(ignore_errors=True)
                stream.close(ignore_errors=True)


def look_anew() -> None:
    """Have PortAudio enumerate devices, which it does only when it starts. Every stream must be closed before."""
    import sounddevice

    with _quiet():
        sounddevice._terminate()
        sounddevice._initialize()


def _reason(error: Exception) -> str:
    """PortAudio's message without its error codes."""
    text = str(error.args[0]) if error.args else str(error)
    return text.removeprefix("Error opening InputStream: ").removeprefix("Error starting stream: ").strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence ALSA's and PortAudio's terminal output; errors are raised all the same."""
    if sys.platform == "win32":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
