"""Pictures and sound pushed by a program instead of a device: checked, sorted, and read by the workers.

Out-of-order input is sorted within a window: until something `ORDER_NS` newer of its kind has come, or a prediction
beyond it was requested. Whether something is too late depends only on earlier input, never on processing speed.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import InputError
from mien.messages import Float32, UInt8
from mien.stream.sources.source import NS_PER_SAMPLE, SAMPLE_RATE, Chunk, Frame, Source
from mien.stream.sources.waveform import GAP_S, Waveform, to_float

ORDER_NS = 500 * NS_PER_MS
PAUSE_NS = NS_PER_S  # a longer gap in the audio starts a new segment; shorter ones become silence, as in clips
_GRID_NS = 20 * NS_PER_MS  # segments start on this grid, as clips do, so that their rows are on the model's time axis
_ROOM = 64  # items queued per worker; then the caller blocks
_LAST_NS = 1 << 62
_SIDES = (16, 16_384)  # pixels
_RATES = (4_000, 768_000)  # samples per second
_MOST_CHANNELS = 64
_LOUDEST = 16.0  # of floating-point samples, whose full scale is 1

T = TypeVar("T")


class InputQueue(Source[T]):
    """Items queued for one worker, which reads them as its source; knows when the worker has finished them all."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._left = self._idle = False

    def start(self, start_ns: int) -> None:
        del start_ns
        self.state = "running"

    def read(self, timeout: float) -> T | None:
        """The next item, None after `timeout` seconds without one. Marks the previous item as finished."""
        with self._changed:
            if not self._items:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._finished or self._left, timeout)
            if not self._items:
                if self._finished or self._left:
                    self.state = "ended"
                return None
            self._idle = False
            self._changed.notify_all()
            return self._items.popleft()

    def close(self) -> None:
        self.state = "ended"

    def put(self, item: T) -> None:
        """Add an item; blocks while the queue is full. A no-op once the worker has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or len(self._items) < _ROOM)
            if not self._left:
                self._items.append(item)
                self._changed.notify_all()

    def settle(self) -> None:
        """Wait until the worker has finished all items."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or (self._idle and not self._items and not self._finished))

    def finish(self) -> None:
        """Close the queue: nothing more will be added."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def leave(self) -> None:
        """The worker has ended: stop waiting for it."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()


class Frames:
    """Input of frames.

    Attributes:
        newest_ns: time of the newest frame; None before the first.
    """

    def __init__(self, out: InputQueue[Frame]) -> None:
        self.newest_ns: int | None = None
        self._out = out
        self._held: list[tuple[int, UInt8]] = []
        self._released_ns = -1
        self._lock = threading.RLock()

    def give(self, image: Any, t_ns: int) -> None:
        """Add a frame; blocks while the worker is far behind.

        Raises:
            InputError: it is not a picture, or it is too late, or there is one with this time already.
        """
        picture = checked_picture(image)
        with self._lock:
            if t_ns <= self._released_ns:
                raise InputError(
                    f"the frame at {seconds(t_ns)} came after the frame at {seconds(self._released_ns)} was processed; "
                    f"frames may be up to {ORDER_NS / NS_PER_S:g} s late, unless a later time was predicted"
                )
            at = bisect_right(self._held, t_ns, key=_time)
            if at and self._held[at - 1][0] == t_ns:
                raise InputError(f"there is already a frame at {seconds(t_ns)}; each needs its own time")
            self._held.insert(at, (t_ns, picture.copy()))  # the caller may reuse its buffer
            self.newest_ns = max(t_ns, self.newest_ns or 0)
            self.release(self.newest_ns - ORDER_NS)

    def release(self, until_ns: int = _LAST_NS) -> None:
        """Pass frames up to a time to the worker; earlier ones are too late from now on."""
        with self._lock:
            while self._held and self._held[0][0] <= until_ns:
                t_ns, picture = self._held.pop(0)
                self._released_ns = t_ns
                self._out.put(Frame(picture, t_ns, t_ns))


class Sounds:
    """Input of audio: any rate, number of channels and chunk size.

    It is mixed down and resampled as a clip's audio (`Waveform`), gaps of at most `PAUSE_NS` are filled with silence,
    and it is cut into chunks.

    Args:
        outs: queues for the chunks. chunk_ms: their length.

    Attributes:
        newest_ns: end of the newest audio; None before the first.
    """

    def __init__(self, outs: Sequence[InputQueue[Chunk]], chunk_ms: int) -> None:
        self.newest_ns: int | None = None
        self._outs = outs
        self._size = chunk_ms * SAMPLE_RATE // 1000
        self._held: list[tuple[int, Float32, float]] = []
        self._end_ns: int | None = None  # of what was released
        self._waveform: Waveform | None = None
        self._begin_ns = 0  # of the current segment
        self._rest = np.zeros(0, np.float32)  # of it, not yet a chunk
        self._cut = 0  # samples of it that became chunks
        self._lock = threading.RLock()

    def give(self, samples: Any, rate: float, t_ns: int) -> None:
        """Add audio; blocks while the workers are far behind.

        Raises:
            InputError: it is not audio, is too late, or overlaps earlier audio.
        """
        channels = checked_sound(samples, rate)
        with self._lock:
            end_ns = t_ns + _length_ns(channels, rate)
            slack_ns = int(GAP_S * NS_PER_S)
            if self._end_ns is not None and t_ns < self._end_ns - slack_ns:
                raise InputError(
                    f"the sound at {seconds(t_ns)} came after sound up to {seconds(self._end_ns)} was processed; "
                    f"pieces may be up to {ORDER_NS / NS_PER_S:g} s late, unless a later time was predicted"
                )
            at = bisect_right(self._held, t_ns, key=_time)
            before = self._held[at - 1] if at else None
            after = self._held[at] if at < len(self._held) else None
            if (before is not None and t_ns < before[0] + _length_ns(before[1], before[2]) - slack_ns) or (
                after is not None and after[0] < end_ns - slack_ns
            ):
                raise InputError(f"the sound from {seconds(t_ns)} to {seconds(end_ns)} overlaps earlier sound")
            insort(self._held, (t_ns, channels, float(rate)), key=_time)
            self.newest_ns = max(end_ns, self.newest_ns or 0)
            self.release(self.newest_ns - ORDER_NS)

    def release(self, until_ns: int = _LAST_NS) -> None:
        """Pass chunks that start up to a time to the workers."""
        with self._lock:
            while self._held and self._held[0][0] <= until_ns:
                t_ns, channels, rate = self._held.pop(0)
                if self._end_ns is not None and t_ns > self._end_ns + PAUSE_NS:
                    self._end_segment()
                if self._waveform is None:
                    self._waveform, self._begin_ns = Waveform(), t_ns // _GRID_NS * _GRID_NS
                self._end_ns = t_ns + _length_ns(channels, rate)
                self._add(self._waveform.push_channels(channels, rate, (t_ns - self._begin_ns) / NS_PER_S))

    def finish(self) -> None:
        """End of the audio: pass on everything, and flush the filters."""
        with self._lock:
            self.release()
            self._end_segment()

    def _end_segment(self) -> None:
        if self._waveform is None:
            return
        self._add(self._waveform.finish())
        if len(self._rest):
            self._send(self._rest)
        self._waveform, self._rest, self._cut = None, np.zeros(0, np.float32), 0

    def _add(self, pieces: Sequence[Float32]) -> None:
        self._rest = np.concatenate([self._rest, *pieces])
        while len(self._rest) >= self._size:
            chunk, self._rest = self._rest[: self._size].copy(), self._rest[self._size :]
            self._send(chunk)

    def _send(self, samples: Float32) -> None:
        t_ns = self._begin_ns + self._cut * NS_PER_SAMPLE
        chunk = Chunk(samples, t_ns, t_ns + len(samples) * NS_PER_SAMPLE, continuous=self._cut > 0)
        self._cut += len(samples)
        for out in self._outs:
            out.put(chunk)


def checked_picture(image: Any) -> UInt8:
    """Validate a picture for the extractors.

    Raises:
        InputError: it is not (height, width, 3) uint8.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"a frame is a NumPy array (height, width, 3) of uint8, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise InputError(f"a frame is uint8, 0 to 255; this one is {image.dtype}: scale it, then .astype(numpy.uint8)")
    if image.ndim != 3 or image.shape[2] != 3:
        hint = {2: "; a grey one becomes BGR by cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"}.get(image.ndim, "")
        if image.ndim == 3 and image.shape[2] == 4:
            hint = "; leave the fourth channel out: image[:, :, :3]"
        raise InputError(f"a frame is (height, width, 3) in the order blue, green, red, not {image.shape}{hint}")
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in image.shape[:2]):
        raise InputError(
            f"a frame's sides are {_SIDES[0]} to {_SIDES[1]} pixels, not {image.shape[1]} x {image.shape[0]}"
        )
    return image


def checked_sound(samples: Any, rate: Any) -> Float32:
    """Validate audio and convert it to (channels, n) float32, full scale 1.

    Raises:
        InputError: it is not a numeric (n,) or (n, channels), or the rate is invalid.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(f"a rate is {_RATES[0]} to {_RATES[1]} samples per second, not {rate!r}")
    if not isinstance(samples, np.ndarray):
        raise InputError(f"sound is a NumPy array (n,) or (n, channels), not {type(samples).__name__}")
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise InputError(f"sound is (n,) or (n, channels) with at least one sample, not {samples.shape}")
    columns: npt.NDArray[Any] = samples[:, None] if samples.ndim == 1 else samples
    if columns.shape[1] > _MOST_CHANNELS:
        raise InputError(f"sound is (n, channels), and {columns.shape[1]} channels are too many; is it transposed?")
    if columns.dtype.kind == "f":
        if not np.isfinite(columns).all():
            raise InputError("the sound has samples that are not finite (NaN or infinite)")
        if np.abs(columns).max() > _LOUDEST:
            raise InputError(
                f"samples of {columns.dtype} are -1 to 1, and these reach {float(np.abs(columns).max()):g}; "
                "give integers as they are (numpy.int16), or divide by their full scale"
            )
    elif columns.dtype not in (np.uint8, np.int16, np.int32):
        raise InputError(f"sound is float, int16, int32 or uint8, not {columns.dtype}")
    return np.ascontiguousarray(to_float(columns.T))


def seconds(t_ns: int) -> str:
    """A time for display."""
    return f"{t_ns / NS_PER_S:.3f} s"


def _length_ns(channels: Float32, rate: float) -> int:
    return round(len(channels[0]) / rate * NS_PER_S)


def _time(item: tuple[Any, ...]) -> int:
    return int(item[0])
