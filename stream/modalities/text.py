"""The words: speech recognition, and MiniLM's state for each word.

Rows are words, not instants: a message holds all words of the last WINDOW_S and replaces the one before. One is
published after every recognition step, even if nothing was said: its end is the watermark.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from mien.assets import ASSETS, asset_path, cache_folder
from mien.clock import NS_PER_MS, NS_PER_S, Clock
from mien.config import AssetsConfig, Config, TextConfig
from mien.engines.predictor import snapshot_reader
from mien.engines.selection import open_engine
from mien.engines.text import text_network
from mien.errors import AssetError, ConfigError
from mien.messages import NOT_UNDERSTOOD, FeatureWindow, Float32, ModalitySpec, Word
from mien.models.checkpoint import load_checkpoint
from mien.models.text.encoder import (
    DEFAULT_ADAPTERS,
    TEXT_DIM,
    TEXT_STEPS,
    WordTokenizer,
    pool_words,
    text_extractor,
)
from mien.models.weights import weight_set
from mien.stream.modalities.base import Health, Modality
from mien.stream.modalities.phrases import PhraseReader
from mien.stream.modalities.sourced import Detail, Hearing
from mien.stream.processes.priority import lower_priority, threads
from mien.stream.sources.audio import open_audio
from mien.stream.sources.source import SAMPLE_RATE, AudioSource, Chunk
from mien.stream.speech.asr import Recognised, Recogniser
from mien.stream.speech.backlog import Backlog
from mien.stream.speech.voice_activity import VoiceActivity
from mien.stream.speech.whisper import Whisper
from mien.windowing import WINDOW_NS

BACKLOG_S = 6.0  # audio that may be queued before the recogniser skips to the newest
POLL_S = 0.05
RETRY_S = 2.0  # between attempts to open a failed recogniser
METER_S = 30.0  # over which the real-time factor is measured
ASR_MODELS = ("tiny.en", "base", "small")


def text_spec(adapters: Path = DEFAULT_ADAPTERS) -> ModalitySpec:
    """The row format with these adapters; plain MiniLM if there is no such file."""
    extractor = text_extractor(adapters if adapters.is_file() else None)
    return ModalitySpec(name="text", dim=TEXT_DIM, rate_hz=0, steps=TEXT_STEPS, snapshot=True, extractor=extractor)


SPEC = text_spec()


class TextEncoder:
    """Words to rows, live and offline.

    Args:
        folder: of MiniLM ("minilm-l6-v2" among the assets).
        engine: "auto" or the name of an engine.
        adapters: fine-tuning; None, or a missing file, for the base model.

    Raises:
        AssetError: the folder does not hold MiniLM.
        EngineError: no engine can run it.
    """

    def __init__(self, folder: Path, engine: str = "auto", adapters: Path | None = DEFAULT_ADAPTERS) -> None:
        self._tokenizer = WordTokenizer(folder)
        if adapters is not None and not adapters.is_file():
            adapters = None  # see `text_spec`
        self._engine = open_engine(text_network(folder, adapters), engine)

    def encode(self, words: Sequence[str]) -> Float32:
        """Shape (words, 384): the mean state of each word's pieces, with all words encoded as one sequence.

        Beyond 128 pieces the oldest words are cut; their rows are zero.
        """
        if not words:
            return np.zeros((0, TEXT_DIM), np.float32)
        pieces = self._tokenizer.tokenize_words(words)
        ids = pieces.input_ids[None]
        states = self._engine.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})["states"][0]
        return pool_words(states, pieces)[0]


class WordReader:
    """Recognised words to the rows of a message: the words of the last WINDOW_S, encoded as one sequence.

    Uncertain words are left out: zero rows, not valid. One code path for the live worker and for whole clips.

    Args:
        settle_s: delay after the end of the audio at which the rows take effect, so that recognition latency below it
            makes no difference. A stream's last rows, which no prediction follows, take effect at once.
    """

    def __init__(self, encoder: TextEncoder, settle_s: float) -> None:
        self._encoder = encoder
        self._settle_ns = round(settle_s * NS_PER_S)
        self._encoded: tuple[tuple[str, ...], Float32] = ((), np.zeros((0, TEXT_DIM), np.float32))

    def rows(self, recognised: Recognised, stamps: dict[str, int] | None = None) -> FeatureWindow:
        """The window that ends where the audio does; re-encoded only if the words have changed."""
        words = words_within(recognised)
        certain = np.array([not word.uncertain for word in words], np.bool_)
        texts = tuple(word.text for word in words if not word.uncertain)
        if texts != self._encoded[0]:
            self._encoded = (texts, self._encoder.encode(texts))
        values = np.zeros((len(words), TEXT_DIM), np.float32)
        values[certain] = self._encoded[1]
        ends_ns = np.array([word.t_end_ns for word in words], np.int64)
        return FeatureWindow(
            t_start_ns=max(0, recognised.t_end_ns - WINDOW_NS),
            t_end_ns=recognised.t_end_ns,
            values=values,
            valid=np.any(values != 0, axis=1),
            times_ns=np.maximum.accumulate(ends_ns),
            words=words,
            stamps=stamps or {},
            reason=NOT_UNDERSTOOD if not texts and (words or recognised.unclear) else "",
            counts_from_ns=0 if recognised.last else recognised.t_end_ns + self._settle_ns,
        )


def open_recogniser(config: TextConfig, assets: AssetsConfig, device: str | None = None) -> Recogniser:
    """The configured streaming recogniser.

    Args:
        device: overrides `config.device`.

    Raises:
        AssetError: the model is not available.
        ConfigError: there is no such model, language, device or compute type.
    """
    whisper = Whisper(
        asr_folder(config.asr, assets),
        config.language,
        device or config.device,
        config.compute_type,
        config.cpu_threads,
    )
    return Recogniser(whisper.decode, VoiceActivity())


def asr_folder(asr: str, assets: AssetsConfig) -> Path:
    """The folder of a speech model: a name in ASR_MODELS, or a path.

    Raises:
        AssetError: a known model that is not available.
        ConfigError: neither a known name nor a folder.
    """
    if asr in ASR_MODELS and f"whisper-{asr}" in ASSETS:
        return asset_path(f"whisper-{asr}", assets)
    if asr in ASR_MODELS:
        # Known, but without a verified source: used if installed by hand, never fetched.
        placed = Path(assets.paths.get(f"whisper-{asr}") or cache_folder(assets) / f"whisper-{asr}").expanduser()
        if placed.is_dir():
            return placed
        raise AssetError(
            f"mien cannot fetch Whisper {asr}: put its CTranslate2 form (model.bin, config.json, tokenizer.json, "
            f"vocabulary.txt) into {placed}, or give its folder with --asr"
        )
    folder = Path(asr).expanduser()
    if folder.is_dir():
        return folder
    raise ConfigError(
        f"`text.asr` is `{asr}`: neither one of {', '.join(ASR_MODELS)}, none, nor a folder with a CTranslate2 model"
    )


class Text(Hearing):
    """A microphone's or a clip's audio, and the words in it.

    The audio is read here, continuously; recognition runs in a thread of its own, one step at a time.

    Args:
        open_source: opens the audio source.
        gives_way: whether recognition runs at low priority, as in its own process.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        open_source: Callable[[Config, Clock], AudioSource] = open_audio,
        *,
        gives_way: bool = True,
    ) -> None:
        self._gives_way = gives_way
        self._adapters = weight_set(config.inference.checkpoint).text
        self.spec = text_spec(self._adapters)
        super().__init__(config, clock, open_source)
        self._fast = config.clip.fast
        self._thread: ThreadPoolExecutor | None = None
        self._backlog = Backlog(config.text.step_ms, None if self._fast else BACKLOG_S)
        self._recogniser: Recogniser | None = None
        self._reader: WordReader | None = None
        self._phrases: PhraseReader | None = None
        self._device: str | None = None
        self._retry_s = 0.0
        self._error: str | None = None
        self._failures = 0
        self._unheard_s = 0.0  # audio received while there was no recogniser
        self._processed_ns: int | None = None
        self._busy: deque[tuple[float, float]] = deque()  # seconds of audio, seconds of work

    def prepare(self) -> None:
        others = threads()
        self._thread = ThreadPoolExecutor(1, "asr")
        self._thread.submit(self._open).result()
        # A recognition step occupies a core for 0.1 to 0.3 s, and video frames must not wait for it. Models are loaded
        # at normal priority: a restarted worker should be back soon.
        if self._gives_way:
            lower_priority(except_for=others)
        super().prepare()

    def rows(self) -> Iterator[FeatureWindow | None]:
        thread = self._thread
        assert thread is not None
        job: Future[FeatureWindow] | None = None
        has_spoken = self._fast  # a fast clip starts with its first words; an empty first message would be useless
        while True:
            source = self._source
            if job is not None and job.done():
                yield job.result()
                job = None
            if job is None:
                step = self._backlog.take(rest=source.ended)
                if step is not None:
                    job = thread.submit(self._recognise, step)
                elif source.ended:
                    break
            if job is not None and (self._fast or source.ended):
                # Without drops: nothing is read ahead of the current step.
                wait([job], POLL_S)
            else:
                chunk = source.read(timeout=POLL_S)
                if chunk is not None:
                    self._backlog.push(chunk)
                    if not has_spoken and self._recogniser is not None:
                        has_spoken = True
                        # Before the first complete step: the worker is listening, and there are no words yet.
                        yield _no_words(max(0, chunk.t_start_ns), {"read": chunk.read_ns})
            yield None
        if self._processed_ns is not None:
            job = thread.submit(self._recognise, None)
            while not job.done():
                wait([job], POLL_S)
                yield None
            yield job.result()

    def health(self) -> Health:
        health = super().health()
        drops = {"skipped_ms": round(self._skipped_s * 1000), "asr_failures": self._failures}
        lost = self._recogniser is None and health.state == "running"
        return replace(
            health,
            state="degraded" if lost else health.state,
            drops=health.drops | {cause: count for cause, count in drops.items() if count},
            last_error=self._error or health.last_error,
        )

    def _detail(self, source: AudioSource) -> Detail:
        del source
        sound_s, work_s = (sum(column) for column in zip(*self._busy, strict=True)) if self._busy else (0.0, 0.0)
        lag_ms = None
        if self._processed_ns is not None and not self._fast:
            lag_ms = round((self._clock.now_ns() - self._processed_ns) / NS_PER_MS)
        return {
            "asr": self._config.text.asr,
            "real_time_factor": round(work_s / sound_s, 3) if sound_s else None,
            "lag_ms": lag_ms,
            "skipped_s": round(self._skipped_s, 2),
        }

    @property
    def _skipped_s(self) -> float:
        """Seconds of audio that were skipped."""
        return self._backlog.skipped_s + self._unheard_s

    def close(self) -> None:
        super().close()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _open(self) -> None:
        text, assets = self._config.text, self._config.assets
        # In parallel: after a restart, words wait for the slower of the two.
        with ThreadPoolExecutor(1, "text-encoder") as executor:
            encoder = executor.submit(TextEncoder, asset_path("minilm-l6-v2", assets), adapters=self._adapters)
            recogniser = open_recogniser(text, assets, self._device)
            self._reader = WordReader(encoder.result(), text.settle_s)
        checkpoint = self._config.inference.checkpoint
        self._phrases = PhraseReader(
            encoder.result().encode, lambda: snapshot_reader(load_checkpoint(checkpoint), self.spec.name)
        )
        self._recogniser = recogniser

    def _recognise(self, step: Chunk | None) -> FeatureWindow:
        """Run one step, or with None finish the stream. Runs in the recogniser's thread; never raises."""
        begun = time.perf_counter()
        t_end_ns = step.t_end_ns if step is not None else self._processed_ns or 0
        seconds = len(step.samples) / SAMPLE_RATE if step is not None else 0.0
        stamps = {"read": step.read_ns} if step is not None else {}
        rows = _no_words(t_end_ns, stamps)
        try:
            if self._recogniser is None and time.monotonic() >= self._retry_s:
                self._open()
            recogniser = self._recogniser
            if recogniser is None or self._reader is None or self._phrases is None:
                self._unheard_s += seconds
            else:
                recognised = (
                    recogniser.finish()
                    if step is None
                    else recogniser.step(step.samples, step.t_end_ns, step.continuous)
                )
                rows = self._reader.rows(recognised, stamps)
                rows = msgspec.structs.replace(rows, phrases=self._phrases.phrases(recognised))
        except Exception as error:  # libraries may raise anything; the stream continues without words
            self._fail(error)
            self._unheard_s += seconds
        self._processed_ns = t_end_ns
        self._busy.append((seconds, time.perf_counter() - begun))
        while len(self._busy) > 1 and sum(sound_s for sound_s, _ in self._busy) > METER_S:
            self._busy.popleft()
        return rows

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        self._error = f"speech recognition failed ({type(error).__name__}: {error}); it is opened again"
        if self._config.text.device == "auto":
            # A GPU that is detected but unusable (a missing library, no memory left) must not disable the words.
            self._device = "cpu"
        self._recogniser = None
        self._retry_s = time.monotonic() + RETRY_S


def words_within(recognised: Recognised) -> tuple[Word, ...]:
    """The words that end within the window, committed ones first."""
    since_ns = recognised.t_end_ns - WINDOW_NS
    return tuple(word for word in recognised.words if since_ns < word.t_end_ns <= recognised.t_end_ns)


def _no_words(t_end_ns: int, stamps: dict[str, int]) -> FeatureWindow:
    """The message for a window without words."""
    return FeatureWindow(
        t_start_ns=max(0, t_end_ns - WINDOW_NS),
        t_end_ns=t_end_ns,
        values=np.zeros((0, TEXT_DIM), np.float32),
        valid=np.zeros(0, np.bool_),
        times_ns=np.zeros(0, np.int64),
        stamps=stamps,
    )


def create(config: Config, clock: Clock) -> Modality:
    """The text modality, not yet prepared."""
    return Text(config, clock)
