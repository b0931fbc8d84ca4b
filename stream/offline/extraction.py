"""From labelled corpora to datasets of rows, through the very extractors of the live stream.

Items are cut into chunks, one shard a chunk; processes take chunks, and a shard appears whole or not at all, so that a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing.util
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mien.assets import asset_path
from mien.clock import NS_PER_S
from mien.config import AssetsConfig, ClipConfig, TextConfig
from mien.errors import DataError, MienError
from mien.files import write_file
from mien.messages import EMOTIONS, Float32, Int64, ModalitySpec, Word
from mien.models.data.corpora import Corpus, CorpusItem, read_corpus
from mien.models.data.datasets import (
    PLAN,
    Labels,
    Manifest,
    NothingExtractedError,
    RawRows,
    Skipped,
    finish_dataset,
    is_dataset,
    read_shard,
    word_times_ns,
    write_shard,
)
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.offline.damage import Bystanders, Damaging, damaged_copies
from mien.stream.offline.helpers import helpers
from mien.stream.recording.stretch import is_recording, recorded_rows
from mien.stream.sources.clip import BrokenClipError, open_clip, read_sound, segment
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import SAMPLE_RATE

if TYPE_CHECKING:
    from mien.stream.modalities.audio import AudioExtractor
    from mien.stream.modalities.base import Rows
    from mien.stream.modalities.text import TextEncoder
    from mien.stream.modalities.vision import VisionExtractor
    from mien.stream.speech.asr import Heard, Recogniser

log = logging.getLogger(__name__)

MODALITIES = ("text", "audio", "vision")
CHUNK_TEXTS, CHUNK_CLIPS = 512, 32
_MEASURED = 100  # clips whose length is looked at before
SHORTEST_PART = 0.2  # of a sentence's words, in a shortened copy


class ExtractOptions(msgspec.Struct, frozen=True):
    """What is extracted.

    Attributes:
        modalities: to extract, where an item has them.
        splits: of items; empty means all.
        audio_copies: perturbed copies of every training clip's sound.
        partial_texts: share of training texts that get a copy with only a part of their words, as a window of a live
            stream often holds.
        asr: recogniser for clips that come without a text; empty or "none" leaves their words out.
        limit: items per corpus and split, for trying things out; 0 takes all.
        audio_track, video_track: which of a clip's tracks, counted from 1; 0 takes the one that a live session would.
        train_limits: training items per corpus, by its name; they are drawn by `seed`.
        damaging: items that are taken once more with damage, by which reliability is learned and measured.
        seed: of the copies.
    """

    modalities: tuple[str, ...] = MODALITIES
    splits: tuple[str, ...] = ()
    audio_copies: int = 0
    partial_texts: float = 0.0
    asr: str = ""
    limit: int = 0
    audio_track: int = 0
    video_track: int = 0
    train_limits: dict[str, int] = {}
    damaging: Damaging = Damaging()
    seed: int = 1111

    def __post_init__(self) -> None:
        if self.asr == "none":  # as everywhere else; one name for it, so that one plan is one plan
            msgspec.structs.force_setattr(self, "asr", "")


class _Chunk(msgspec.Struct, frozen=True):
    """Items of one corpus that become one shard."""

    source: str
    corpus: str
    ids: tuple[int, ...]  # positions in the corpus
    shard: str


class _Plan(msgspec.Struct, frozen=True):
    specs: tuple[ModalitySpec, ...]
    options: ExtractOptions
    chunks: tuple[_Chunk, ...]
    skipped: tuple[Skipped, ...]
    assets: AssetsConfig = AssetsConfig()


def live_specs(modalities: Collection[str] = MODALITIES, weights: WeightSet = SHIPPED) -> dict[str, ModalitySpec]:
    """What the extractors make with these weights."""
    specs: dict[str, ModalitySpec] = {}
    if "text" in modalities:
        from mien.stream.modalities import text

        specs["text"] = text.text_spec(weights.text)
    if "audio" in modalities:
        from mien.stream.modalities import audio

        specs["audio"] = audio.SPEC
    if "vision" in modalities:
        from mien.stream.modalities import vision

        specs["vision"] = vision.vision_spec(weights.face)
    return specs


def needed_specs(corpus: Corpus, options: ExtractOptions, weights: WeightSet = SHIPPED) -> dict[str, ModalitySpec]:
    """What the extractors make of the items that would be taken from a corpus."""
    has = {name for position in _chosen(corpus, options) for name in _modalities_of(corpus.items[position], options)}
    return live_specs(has, weights)


def wordless_sound(sources: Sequence[Path], options: ExtractOptions) -> tuple[int, float]:
    """How many items of folders of clips have sound and no text, and how many seconds they last, about.

    Other corpora that come without texts are of scripted sentences, whose words tell nothing.
    """
    count, seconds = 0, 0.0
    for source in sources:
        if is_dataset(source) or source.suffix.lower() in (".pkl", ".pickle"):
            continue
        corpus = read_corpus(source)
        if not corpus.clips:
            continue
        items = [corpus.items[position] for position in _chosen(corpus, options)]
        items = [i for i in items if i.text is None and i.audio is not None and not is_recording(i.audio)]
        lengths = [_seconds(item) for item in items[:: max(1, len(items) // _MEASURED)]]
        count += len(items)
        seconds += sum(lengths) / max(len(lengths), 1) * len(items)
    return count, seconds


def _seconds(item: CorpusItem) -> float:
    if item.end_s is not None:
        return item.end_s - (item.start_s or 0.0)
    assert item.audio is not None
    try:
        return max(open_clip(item.audio).duration_s - (item.start_s or 0.0), 0.0)
    except MienError:
        return 0.0  # skipped later, with its reason


def extract(
    sources: Sequence[Path],
    out: Path,
    options: ExtractOptions | None = None,
    *,
    assets: AssetsConfig | None = None,
    weights: WeightSet = SHIPPED,
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Extract corpora into the dataset folder `out`, or go on with a run that was stopped.

    Args:
        sources: corpora in any layout that `read_corpus` knows.
        weights: of the text and face encoders.
        jobs: processes; 0 is one per core.
        progress: called with items done and items in all.

    Returns:
        The manifest; it lists what was skipped, with the reason.

    Raises:
        DataError: nothing to extract, every item was skipped, `out` holds something else, or the disk is full.
        AssetError: a pretrained file is not to be had.
    """
    plan = _make_plan([Path(source).resolve() for source in sources], options or ExtractOptions(), assets, weights)
    out.mkdir(parents=True, exist_ok=True)
    _begin(out, plan)
    specs = {spec.name: spec for spec in plan.specs}
    total = sum(len(chunk.ids) for chunk in plan.chunks)
    todo = [chunk for chunk in plan.chunks if not _is_done(out / chunk.shard, plan.specs)]
    done = total - sum(len(chunk.ids) for chunk in todo)
    if progress is not None:
        progress(done, total)
    for chunk in _run(todo, plan, out, weights, min(jobs or os.cpu_count() or 1, len(todo))):
        done += len(chunk.ids)
        if progress is not None:
            progress(done, total)
    shards = [out / chunk.shard for chunk in plan.chunks]
    try:
        return finish_dataset(out, specs, shards, plan.skipped)
    except NothingExtractedError:
        for path in (*shards, out / PLAN):
            path.unlink(missing_ok=True)  # the next run is to try the items again
        raise


def _make_plan(
    sources: Sequence[Path], options: ExtractOptions, assets: AssetsConfig | None, weights: WeightSet
) -> _Plan:
    chunks: list[_Chunk] = []
    skipped: list[Skipped] = []
    specs: dict[str, ModalitySpec] = {}
    for source in sources:
        corpus = read_corpus(source)
        skipped += [Skipped(item, reason) for item, reason in corpus.skipped]
        chosen = _chosen(corpus, options)
        specs |= needed_specs(corpus, options, weights)
        size = CHUNK_TEXTS if corpus.items[0].audio is None else CHUNK_CLIPS
        for begin in range(0, len(chosen), size):
            shard = f"shard-{len(chunks):05d}.safetensors"
            chunks.append(_Chunk(str(source), corpus.name, tuple(chosen[begin : begin + size]), shard))
    if not chunks and skipped:
        raise NothingExtractedError(skipped)
    if not chunks:
        raise DataError("nothing to extract: no item is in the wanted splits")
    ordered = [specs[name] for name in MODALITIES if name in specs]
    return _Plan(tuple(ordered), options, tuple(chunks), tuple(skipped), assets or AssetsConfig())


def _chosen(corpus: Corpus, options: ExtractOptions) -> list[int]:
    counts: dict[str | None, int] = {}
    chosen = []
    left_out = _beyond(corpus, options)
    for position, item in enumerate(corpus.items):
        if position in left_out:
            continue
        if options.splits and item.split is not None and item.split not in options.splits:
            continue
        counts[item.split] = counts.get(item.split, 0) + 1
        if not options.limit or counts[item.split] <= options.limit:
            chosen.append(position)
    return chosen


def _beyond(corpus: Corpus, options: ExtractOptions) -> set[int]:
    """Positions of the training items that are more than the corpus may have."""
    if corpus.name not in options.train_limits:
        return set()
    train = [position for position, item in enumerate(corpus.items) if item.split == "train"]
    order = np.random.default_rng(options.seed).permutation(len(train))
    return {train[n] for n in order[options.train_limits[corpus.name] :]}


def _modalities_of(item: CorpusItem, options: ExtractOptions) -> set[str]:
    has = set()
    if item.text is not None or (item.audio is not None and (options.asr or is_recording(item.audio))):
        has.add("text")
    if item.audio is not None:
        has.add("audio")
    if item.video is not None or item.image is not None:
        has.add("vision")
    return has & set(options.modalities)


def _begin(out: Path, plan: _Plan) -> None:
    """Note the plan in the folder, or find that it is the one that was begun there."""
    content = msgspec.json.encode(plan)
    if (out / PLAN).is_file():
        if (out / PLAN).read_bytes() != content:
            raise DataError(
                f"{out} was begun from other corpora, options or extractors; choose another folder or remove this one"
            )
    elif any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no dataset; choose another folder")
    else:
        write_file(out / PLAN, content, private=True)


def _is_done(shard: Path, specs: Sequence[ModalitySpec]) -> bool:
    if not shard.is_file():
        return False
    try:
        read_shard(shard, specs)
    except DataError:
        return False
    return True


def _run(todo: list[_Chunk], plan: _Plan, out: Path, weights: WeightSet, jobs: int) -> Iterator[_Chunk]:
    if jobs <= 1:
        worker = _Worker(plan, out, weights)
        try:
            for chunk in todo:
                worker.make(chunk)
                yield chunk
        finally:
            worker.extractors.close()
        return
    with helpers(jobs, _start_worker, plan, out, weights) as pool:
        futures = {pool.submit(_work, chunk): chunk for chunk in todo}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker: _Worker | None = None


def _start_worker(plan: _Plan, out: Path, weights: WeightSet) -> None:
    global _worker
    _worker = _Worker(plan, out, weights)
    # MediaPipe must be closed before the interpreter is: a spawned process runs finalizers, not `atexit`.
    multiprocessing.util.Finalize(None, _worker.extractors.close, exitpriority=10)


def _work(chunk: _Chunk) -> None:
    assert _worker is not None
    _worker.make(chunk)


class _Worker:
    """One process: makes shards, and opens each extractor when it is first needed."""

    def __init__(self, plan: _Plan, out: Path, weights: WeightSet) -> None:
        self._plan, self._out = plan, out
        self._corpora: dict[str, Corpus] = {}
        self._bystanders: dict[Path, Bystanders] = {}
        tracks = ClipConfig(audio_track=plan.options.audio_track, video_track=plan.options.video_track)
        names = [spec.name for spec in plan.specs]
        self.extractors = Extractors(names, plan.options.asr, plan.assets, weights, tracks=tracks)

    def make(self, chunk: _Chunk) -> None:
        if chunk.source not in self._corpora:
            self._corpora[chunk.source] = read_corpus(Path(chunk.source))
        corpus = self._corpora[chunk.source]
        made: list[tuple[Labels, dict[str, RawRows]]] = []
        skipped: list[Skipped] = []
        for position in chunk.ids:
            item = corpus.items[position]
            try:
                made += self._rows(corpus, item)
            except MienError as error:
                skipped.append(Skipped(item.id, str(error)))
        write_shard(self._out / chunk.shard, {s.name: s for s in self._plan.specs}, made, skipped)

    def _rows(self, corpus: Corpus, item: CorpusItem) -> Iterator[tuple[Labels, dict[str, RawRows]]]:
        rows, duration_ns, text = self.extractors.rows(item, corpus)
        if not rows:
            raise DataError("it has none of the wanted modalities")
        labels = Labels(
            id=item.id,
            corpus=corpus.name,
            split=item.split,
            speaker=item.speaker,
            sentiment=item.sentiment,
            coarse=item.coarse,
            emotions=item.emotion_target,
            agreed=_number(item.emotion, -1) if item.emotions is not None and item.image is not None else None,
            own=_number(item.own_emotion),
            duration_ns=duration_ns,
            still=item.image is not None,
            text=text,
        )
        yield labels, rows
        if item.split == "train":
            yield from self._copies(corpus, item, labels)
        others = self._bystanders.setdefault(corpus.path, Bystanders(corpus))
        yield from damaged_copies(self.extractors, corpus, others, item, labels, self._plan.options.damaging)

    def _copies(self, corpus: Corpus, item: CorpusItem, labels: Labels) -> Iterator[tuple[Labels, dict[str, RawRows]]]:
        options = self._plan.options
        # From the item's own name: the same copies whichever process makes them, and in whatever order.
        digest = hashlib.sha256(f"{options.seed} {corpus.name} {item.id}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        if labels.text and item.audio is None and random.random() < options.partial_texts:
            part = " ".join(shortened(labels.text.split(), random))
            rows, duration_ns, _ = self.extractors.rows(replace(item, text=part), corpus)
            yield (
                msgspec.structs.replace(labels, id=f"{item.id}~part", duration_ns=duration_ns, text=part, copy=True),
                rows,
            )
        if item.audio is not None and item.video is None and "audio" in self.extractors.modalities:
            from mien.models.data.augmentation import perturb_waveform

            for copy in range(options.audio_copies):
                sound = perturb_waveform(
                    segment(read_sound(item.audio, self.extractors.tracks), item.start_s, item.end_s), random
                )
                audio = self.extractors.sound_rows(sound)
                changed = msgspec.structs.replace(
                    labels, id=f"{item.id}~{copy + 1}", duration_ns=len(sound) * NS_PER_S // SAMPLE_RATE, copy=True
                )
                yield changed, {"audio": audio}


def _number(emotion: str | None, otherwise: int | None = None) -> int | None:
    return otherwise if emotion is None else EMOTIONS.index(emotion)


def shortened(words: list[str], random: np.random.Generator) -> list[str]:
    """A run of the words, as a window that opens late or closes early holds, half of the time as a recogniser
    without punctuation writes them."""
    count = max(1, round(len(words) * random.uniform(SHORTEST_PART, 1.0)))
    begin = int(random.integers(0, len(words) - count + 1)) if random.random() < 0.4 else 0
    part = words[begin : begin + count]
    if random.random() < 0.5:
        part = [word for word in (w.strip('.,;:!?"()-').lower() for w in part) if word] or part
    return part


class Extractors:
    """The live extractors, opened when they are first needed.

    Attributes:
        modalities: what is wanted of every item.
        weights: of the text and face encoders.
        tracks: which of a file's tracks are taken.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        asr: str = "",
        assets: AssetsConfig | None = None,
        weights: WeightSet = SHIPPED,
        reference: str | None = None,
        tracks: ClipConfig | None = None,
    ) -> None:
        self.weights, self._reference, self.tracks = weights, reference, tracks
        self.modalities, self._asr, self._assets = tuple(modalities), asr, assets or AssetsConfig()
        self._opened: dict[str, Any] = {}

    def rows(self, item: CorpusItem, corpus: Corpus | None = None) -> tuple[dict[str, RawRows], int, str | None]:
        """All rows of one item, its length in ns, and the words in it.

        Raises:
            SourceError: its clip cannot be read.
            DataError: there is nothing in it.
        """
        if item.audio is not None and is_recording(item.audio):
            specs = live_specs([name for name in self.modalities if name != "text"], self.weights)
            encode = (lambda words: self.text.encode(words)) if "text" in self.modalities else None
            return recorded_rows(item.audio, item, specs, encode)
        rows: dict[str, RawRows] = {}
        duration_ns = 0
        if item.start_s is not None and item.end_s is not None:
            duration_ns = round((item.end_s - item.start_s) * NS_PER_S)
        words, word_times = (item.text or "").split(), None
        if item.audio is not None:
            clip = open_clip(item.audio, self.tracks)
            for note in clip.notes:
                log.warning("%s", note)
            duration_ns = duration_ns or round((clip.duration_s - (item.start_s or 0.0)) * NS_PER_S)
            if clip.has_audio:
                sound = segment(read_sound(item.audio, self.tracks), item.start_s, item.end_s)
                if not len(sound) and not clip.has_video:
                    raise DataError("zero duration")
                if "audio" in self.modalities:
                    rows["audio"] = self.sound_rows(sound)
                if self._asr and not words and "text" in self.modalities:
                    words, word_times = self.recognise(sound)
            if clip.has_video and item.video is not None and "vision" in self.modalities:
                rows["vision"] = self.picture_rows(item)
        if item.image is not None and "vision" in self.modalities:
            assert corpus is not None, "an image is a row of its corpus"
            assert corpus.images is not None
            values, valid, _ = self.vision.still(corpus.images[item.image])
            rows["vision"] = RawRows(values[None], np.array([valid]), np.zeros(1, np.int64))
        if words and "text" in self.modalities:
            times = word_times if word_times is not None else word_times_ns(len(words), duration_ns)
            values = self.text.encode(words)
            # Words beyond what the encoder reads at once have no row.
            rows["text"] = RawRows(values, (values != 0).any(1), np.asarray(times, np.int64))
            duration_ns = duration_ns or int(times[-1]) + 1
        return rows, duration_ns, " ".join(words) or None

    def close(self) -> None:
        """Release what was opened."""
        if "vision" in self._opened:
            self.vision.close()
        self._opened.clear()

    def sound_rows(self, sound: Float32) -> RawRows:
        """Rows of a whole recording, mono 16 kHz."""
        from mien.stream.modalities.audio import RATE_HZ

        made = self.audio.extract(sound)
        slot_ns = NS_PER_S // RATE_HZ
        return RawRows(made.values, made.valid, np.arange(len(made.values), dtype=np.int64) * slot_ns + slot_ns // 2)

    def picture_rows(self, item: CorpusItem) -> RawRows:
        """Rows of the pictures of an item's clip."""
        from mien.stream.modalities import vision

        assert item.video is not None
        start_ns = round((item.start_s or 0.0) * NS_PER_S)
        end_ns = None if item.end_s is None else round(item.end_s * NS_PER_S)
        self.vision.reset()
        values, valid = [np.zeros((0, vision.SPEC.dim), np.float32)], []
        times: list[int] = []
        with contextlib.suppress(BrokenClipError):  # what came before is good
            for t_ns, frame in open_clip(item.video, self.tracks).pictures():
                if t_ns < start_ns or (times and t_ns - start_ns <= times[-1]):
                    continue
                if end_ns is not None and t_ns >= end_ns:
                    break
                row, seen, _ = self.vision.row(upright_bgr(frame), t_ns - start_ns)
                values.append(row[None])
                valid.append(seen)
                times.append(t_ns - start_ns)
        return RawRows(np.concatenate(values), np.array(valid, np.bool_), np.array(times, np.int64))

    def heard(self, sound: Float32) -> Iterator[Heard]:
        """What the live recogniser knows of a whole recording, step by step."""
        return self.recogniser.whole(sound, TextConfig().step_ms)

    def said(self, sound: Float32) -> Iterator[Rows]:
        """The messages of a live text worker over a whole recording."""
        from mien.stream.modalities.text import WordReader

        reader = WordReader(self.text)
        return (reader.rows(heard) for heard in self.heard(sound))

    def recognise(self, sound: Float32) -> tuple[list[str], Int64]:
        """The words that a live session commits in a recording and is certain of, and when each ends, in ns."""
        said: list[Word] = []
        for heard in self.heard(sound):
            said += heard.committed
            # What follows a word tells whether it is certain.
            recent = [word for word in heard.words if word.committed]
            said[len(said) - len(recent) :] = recent
        words = [word for word in said if not word.uncertain]
        return [word.text.strip() for word in words], np.array([word.t_end_ns for word in words], np.int64)

    @property
    def text(self) -> TextEncoder:
        """Words to rows."""
        if "text" not in self._opened:
            from mien.stream.modalities.text import TextEncoder

            self._opened["text"] = TextEncoder(
                asset_path("minilm-l6-v2", self._assets), "onnx", adapters=self.weights.text
            )
        encoder: TextEncoder = self._opened["text"]
        return encoder

    @property
    def audio(self) -> AudioExtractor:
        """Sound to rows."""
        if "audio" not in self._opened:
            from mien.stream.modalities.audio import AudioExtractor, voice_reference

            compared = None if self._reference is None else voice_reference(self._reference)
            self._opened["audio"] = AudioExtractor(self._assets, compared)
        extractor: AudioExtractor = self._opened["audio"]
        return extractor

    @property
    def vision(self) -> VisionExtractor:
        """Pictures to rows."""
        if "vision" not in self._opened:
            from mien.stream.modalities.vision import VisionExtractor

            self._opened["vision"] = VisionExtractor(self._assets, weights=self.weights.face)
        extractor: VisionExtractor = self._opened["vision"]
        return extractor

    @property
    def recogniser(self) -> Recogniser:
        """Sound to words, for clips that come without a text."""
        if "recogniser" not in self._opened:
            from mien.stream.modalities.text import open_recogniser

            self._opened["recogniser"] = open_recogniser(TextConfig(asr=self._asr), self._assets)
        recogniser: Recogniser = self._opened["recogniser"]
        return recogniser
