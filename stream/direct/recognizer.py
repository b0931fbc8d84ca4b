"""`mien.Recognizer`: predictions for a program's own frames and audio."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.closing import Closing
from mien.config import Config, load_config
from mien.errors import InputError
from mien.messages import Prediction
from mien.stream.direct.given import Frames, InputQueue, Sounds, seconds
from mien.stream.direct.session import LOOK_BACK_NS, LocalSession
from mien.stream.modalities.audio import Audio
from mien.stream.modalities.base import Modality
from mien.stream.modalities.text import Text
from mien.stream.modalities.vision import Vision
from mien.stream.processes.plan import Session
from mien.stream.sources.source import Chunk
from mien.stream.sources.source import Frame as SourceFrame

APART_NS = 10 * NS_PER_S  # maximum offset between a stream's frames and audio
BEYOND_NS = 100 * NS_PER_MS  # audio required after an instant to complete its last rows
_POLL_S = 0.005
_MOST_S = 4e9  # the year 2096, far below the overflow of nanoseconds


class Options(TypedDict, total=False):
    """What a `Recognizer` works with; its docstring explains them."""

    asr: str | None
    language: str | None
    checkpoint: str | Path | None
    engine: str | None
    person: str | None
    config: str | Path | None


_KEYS = {
    "asr": "text.asr",
    "language": "text.language",
    "checkpoint": "inference.checkpoint",
    "engine": "inference.engine",
    "person": "person.name",
}


class Frame(NamedTuple):
    """A picture for `Recognizer.stream`: arguments of `Recognizer.frame`."""

    bgr: Any
    t: float


class Sound(NamedTuple):
    """Audio for `Recognizer.stream`: arguments of `Recognizer.sound`."""

    samples: Any
    rate: float
    t: float


class Recognizer(Closing):
    """Predictions for your program's own frames and audio, without sockets or further processes.

    The extractors, windows and model are those of `mien run`; the same input gives the same numbers as
    `mien run --fast`. The constructor loads the models, which takes seconds; the work is done in background threads.
    All methods are thread-safe.

    Times are capture times in seconds on any clock, the same for frames and audio. Frames and audio chunks may arrive
    up to half a second out of order.

    Args:
        video: whether frames will be pushed. audio: whether audio will.
        asr: speech recogniser for the words, as `text.asr` of the configuration; "none" disables words.
        language: the spoken language.
        checkpoint: folder of `mien train` or a CM-MSF file; empty for the shipped weights.
        engine: "auto", or a name that `mien engines` lists.
        person: name of a person measured by `mien calibrate`, whose baseline is applied.
        config: a TOML file; the other arguments override it.

    Raises:
        AssetError: a pretrained file is missing; `mien assets` fetches them.
        ConfigError: an argument or a key of the file is invalid.
        CheckpointError, EngineError: the model cannot be used.
    """

    def __init__(
        self,
        *,
        video: bool = True,
        audio: bool = True,
        **options: Unpack[Options],
    ) -> None:
        if not (video or audio):
            raise InputError("a Recognizer needs frames, sound, or both: video=True, audio=True")
        settings = settings_of(options)
        self._clock = Clock()
        workers = ["video"] if video else []
        workers += ["audio"] if audio else []
        workers += ["text"] if audio and settings.text.asr != "none" else []
        absent = {"vision": "switched off", "audio": "switched off", "text": "switched off"}
        plan = Session(settings, tuple(workers), absent, (), "given frames and sound")
        self._for_vision: InputQueue[SourceFrame] = InputQueue("given frames")
        self._for_sound: dict[str, InputQueue[Chunk]] = {
            name: InputQueue("given sound") for name in workers if name != "video"
        }
        self._frames = Frames(self._for_vision) if video else None
        self._sounds = Sounds(tuple(self._for_sound.values()), settings.audio.chunk_ms) if audio else None
        self._began_ns: int | None = None
        self._last_ns = -1
        self._finished = self._streams = self._closed = False
        self._lock = threading.RLock()
        self._running = LocalSession(plan, create=self._create, paced=False)
        every: dict[str, InputQueue[Any]] = {"video": self._for_vision, **self._for_sound}
        self._queues = queues = {worker: every[worker] for worker in workers}
        self._running.start(streams=False, left=lambda worker: queues[worker].leave())
        self._end = weakref.finalize(self, _close, self._running, tuple(queues.values()))

    def frame(self, bgr: Any, t: float | None = None) -> None:
        """Push a picture. Returns at once, unless the extractors are far behind.

        Args:
            bgr: (height, width, 3) uint8, blue, green, red, as in OpenCV; it is copied.
            t: capture time in seconds; default: now. Each frame needs a different time.

        Raises:
            InputError: it cannot be used, and why; nothing was accepted.
        """
        t_ns = self._clock.now_ns() if t is None else nanoseconds(t)
        self._check_open("video", self._frames)
        assert self._frames is not None
        self._check_apart(t_ns, self._sounds, "sound", "audio")
        self._frames.give(bgr, t_ns)
        self._began_ns = t_ns if self._began_ns is None else self._began_ns

    def sound(self, samples: Any, rate: float, t: float | None = None) -> None:
        """Push audio. Returns at once, unless the extractors are far behind.

        Args:
            samples: (n,) or (n, channels): float from -1 to 1, int16, int32, or uint8.
            rate: samples per second, 4,000 to 768,000.
            t: capture time of the first sample in seconds; default: the last sample was captured just now.

        Raises:
            InputError: it cannot be used, and why; nothing was accepted.
        """
        self._check_open("audio", self._sounds)
        assert self._sounds is not None
        if t is None:
            is_valid = hasattr(samples, "__len__") and isinstance(rate, int | float) and rate > 0
            length_s = len(samples) / rate if is_valid else 0.0
            t_ns = self._clock.now_ns() - round(length_s * NS_PER_S)
        else:
            t_ns = nanoseconds(t)
        self._check_apart(t_ns, self._frames, "frames", "video")
        self._sounds.give(samples, rate, t_ns)
        self._began_ns = t_ns if self._began_ns is None else self._began_ns

    def predict(self, t: float | None = None, *, wait: bool = True) -> Prediction:
        """The prediction for an instant, from all input up to it.

        To equal `mien run --fast` exactly, it needs 0.1 s of audio after the instant.

        Args:
            t: the instant, in seconds; default: the newest input's time. Not before an instant that was predicted
                already, and at most 4 s before the newest frame or audio.
            wait: wait until the words up to it are recognised, which occasionally takes some tenths of a second.
                Without, the words recognised so far are used, and numbers depend on the machine's speed.

        Raises:
            InputError: there is no input yet, or `t` cannot be used.
        """
        with self._lock:
            self._check_open()
            if self._streams:
                raise InputError("predict() cannot be mixed with stream(), which predicts every instant itself")
            newest_ns = self._newest_ns()
            if newest_ns is None:
                raise InputError("nothing to predict from yet: give a frame or sound first")
            t_ns = newest_ns if t is None else nanoseconds(t)
            if t_ns < self._last_ns:
                raise InputError(f"{seconds(t_ns)} is before {seconds(self._last_ns)}, which was already predicted")
            if t_ns < newest_ns - LOOK_BACK_NS:
                raise InputError(
                    f"{seconds(t_ns)} is too long before the newest input, of {seconds(newest_ns)}; predict as you "
                    "give, or use stream() or mien.analyze for every instant"
                )
            if not self._finished:
                self._release(t_ns)
            for worker, waiting in self._queues.items():
                if wait or worker != "text":
                    waiting.settle()
            prediction = self._running.at(t_ns)
            self._last_ns = t_ns
            return prediction

    async def stream(
        self, inputs: Iterable[Frame | Sound] | AsyncIterable[Frame | Sound] | None = None
    ) -> AsyncIterator[Prediction]:
        """Every instant's prediction, equal to those of `mien run --fast`.

        One per frame (without frames, per chunk of audio), as soon as all input up to it has been pushed, and a last
        one that has seen everything.

        Args:
            inputs: frames and audio, roughly in time order; the stream ends after them. Without, they are pushed by
                `frame` and `sound` from other threads, until `finish`. Calling these within the event loop's own thread
                can deadlock, since no prediction is consumed meanwhile: use `inputs`.

        Raises:
            InputError: an input cannot be used.
        """
        await asyncio.to_thread(self._begin_stream)
        feeding = asyncio.ensure_future(self._feed(inputs)) if inputs is not None else None
        try:
            while True:
                predictions, over = self._running.poll()
                for prediction in predictions:
                    yield prediction
                if over:
                    break
                if feeding is not None and feeding.done():
                    feeding.result()
                if not predictions:
                    await asyncio.sleep(_POLL_S)
        finally:
            if feeding is not None:
                feeding.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await feeding

    def every(self, inputs: Iterable[Frame | Sound]) -> Iterator[Prediction]:
        """`stream` for programs without an event loop: its predictions for `inputs`."""
        self._begin_stream()
        failure: list[BaseException] = []

        def feed() -> None:
            try:
                for item in inputs:
                    self._give(item)
                self.finish()
            except BaseException as error:
                failure.append(error)
                self.close()

        thread = threading.Thread(target=feed, name="mien-inputs", daemon=True)
        thread.start()
        yield from self._running.predictions()
        if failure:
            raise failure[0]
        thread.join()

    def finish(self) -> None:
        """End of input: `stream` ends, and the last words become final. May be called twice."""
        with self._lock:
            if self._finished or self._closed:
                return
            self._finished = True
            if self._frames is not None:
                self._frames.release()
            if self._sounds is not None:
                self._sounds.finish()
            for waiting in self._queues.values():
                waiting.finish()

    def close(self) -> None:
        """Release the models, and stop the threads. May be called twice."""
        self._closed = True
        self._end()

    def _create(self, worker: str, config: Config, clock: Clock) -> Modality:
        frames = self._for_vision  # not through `self`, which must not be kept alive
        if worker == "video":
            return Vision(config, clock, lambda *_: frames)
        sound = self._for_sound[worker]
        if worker == "audio":
            return Audio(config, clock, lambda *_: sound)
        return Text(config, clock, lambda *_: sound, gives_way=False)

    def _begin_stream(self) -> None:
        with self._lock:
            self._check_open()
            if self._streams:
                raise InputError("a Recognizer runs stream() only once: make another for another input")
            self._streams = True
        self._running.stream()

    async def _feed(self, inputs: Iterable[Frame | Sound] | AsyncIterable[Frame | Sound]) -> None:
        if isinstance(inputs, AsyncIterable):
            async for item in inputs:
                await asyncio.to_thread(self._give, item)
        else:
            each = iter(inputs)
            while (following := await asyncio.to_thread(next, each, None)) is not None:
                await asyncio.to_thread(self._give, following)
        await asyncio.to_thread(self.finish)

    def _give(self, item: Frame | Sound) -> None:
        if isinstance(item, Frame):
            self.frame(*item)
        elif isinstance(item, Sound):
            self.sound(*item)
        else:
            raise InputError(f"stream() takes mien.Frame and mien.Sound, not {type(item).__name__}")

    def _release(self, t_ns: int) -> None:
        if self._frames is not None:
            self._frames.release(t_ns)
        if self._sounds is not None:
            self._sounds.release(t_ns + BEYOND_NS)

    def _newest_ns(self) -> int | None:
        known = [each.newest_ns for each in (self._frames, self._sounds) if each is not None]
        return max((each for each in known if each is not None), default=None)

    def _check_open(self, switch: str = "", taken: Frames | Sounds | None = None) -> None:
        if self._closed:
            raise InputError("this Recognizer is closed; make another one")
        if switch and taken is None:
            raise InputError(f"this Recognizer was made with {switch}=False")
        if switch and self._finished:
            raise InputError("finish() was called, which ends the input; make another Recognizer")
        self._running.check()

    def _check_apart(self, t_ns: int, other: Frames | Sounds | None, what: str, switch: str) -> None:
        """Bound the offset: a stream waits for both frames and audio, and must not queue either forever."""
        if not self._streams or other is None:
            return
        since_ns = self._began_ns if other.newest_ns is None else other.newest_ns
        if since_ns is not None and t_ns > since_ns + APART_NS:
            raise InputError(
                f"{APART_NS / NS_PER_S:g} s without {what} up to {seconds(t_ns)}: stream() waits for both; give both "
                f"about in the order of their times, or make the Recognizer with {switch}=False"
            )


def settings_of(options: Options) -> Config:
    """A call's configuration: the file with the options applied, and no dropping of input."""
    given: dict[str, Any] = dict(options)
    config = given.pop("config", None)
    if unknown := given.keys() - _KEYS.keys():
        raise TypeError(f"unexpected argument {min(unknown)!r}; there are {', '.join([*_KEYS, 'config'])}")
    laid = {_KEYS[name]: None if value is None else str(value) for name, value in given.items()}
    path = None if config is None else Path(config).expanduser()
    return load_config(path, {**laid, "clip.fast": True, "clip.loop": False})


def nanoseconds(t: Any) -> int:
    """A time in seconds as ns.

    Raises:
        InputError: it is not a valid time.
    """
    try:
        value = float(t)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= _MOST_S:
        raise InputError(f"a time is a number of seconds, 0 or more, not {t!r}")
    return round(value * NS_PER_S)


def _close(running: LocalSession, queues: tuple[InputQueue[Any], ...]) -> None:
    for waiting in queues:
        waiting.leave()
    running.close()
