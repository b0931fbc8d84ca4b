"""Predictions over a clip without a live stream: the same extractors, words, windows and model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mien.clock import NS_PER_S
from mien.config import ClipConfig, InferenceConfig
from mien.engines.predictor import Answer, Predictor
from mien.engines.rings import Windows
from mien.engines.snapshots import Snapshots
from mien.errors import SourceError
from mien.messages import EMOTIONS, FeatureWindow, Float32, ModalitySpec, Word
from mien.models.baseline import Person
from mien.models.checkpoint import check_extractors, load_checkpoint
from mien.models.data.corpora import MEDIA_SUFFIXES, CorpusItem
from mien.models.data.datasets import RawRows
from mien.models.weights import weight_set
from mien.stream.features.table import FeatureTable, boxes_of
from mien.stream.inference.about import with_person
from mien.stream.inference.assembler import Assembler
from mien.stream.inference.playback import begins_ns
from mien.stream.modalities.base import message_of
from mien.stream.offline.extractors import Extractors, live_specs
from mien.stream.sources.address import printable
from mien.stream.sources.clip import open_clip, read_sound
from mien.windowing import slot_ns

_PIECE_NS = 40_000_000  # of messages with dense rows: the length of a chunk of sound


@dataclass(frozen=True)
class Moment:
    """The prediction at `t_s` seconds into a clip; None where nothing was observed.

    `uncertain` words are for display: the model does not see them.
    """

    t_s: float
    answer: Answer | None
    words: str = ""
    uncertain: str = ""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip's length, and the messages of its workers in a live session, in order of time.

    `boxes` (n, 4) are those of the face in each vision row, in pixels (left, top, right, bottom), NaN without a face.
    """

    name: str
    duration_ns: int
    messages: tuple[FeatureWindow, ...]
    notes: tuple[str, ...] = ()
    boxes: Float32 | None = None


def clips_in(path: Path) -> list[Path]:
    """The clip, or all clips in a folder and its subfolders, sorted.

    Raises:
        SourceError: there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA_SUFFIXES)
    if not found:
        raise SourceError(f"{path} is neither a clip nor a folder with clips")
    return found


def read_clip(path: Path, specs: dict[str, ModalitySpec], extractors: Extractors, words: bool) -> Clip:
    """Extract a whole clip.

    Raises:
        SourceError: it cannot be read.
    """
    clip = open_clip(path, extractors.tracks)
    name = printable(str(path))
    messages: list[FeatureWindow] = []
    boxes: Float32 | None = None
    if clip.has_audio:
        sound = read_sound(path, extractors.tracks)
        if "audio" in specs:
            messages += _messages(name, specs["audio"], _pieces(specs["audio"], extractors.sound_rows(sound)))
        if words and "text" in specs:
            messages += _messages(name, specs["text"], extractors.word_messages(sound))
    if clip.has_video and "vision" in specs:
        rows = extractors.picture_rows(CorpusItem(str(path), audio=path, video=path))
        messages += _messages(name, specs["vision"], _pieces(specs["vision"], rows))
        boxes = boxes_of(extractors.boxes)
    messages.sort(key=begins_ns)
    return Clip(name, round(clip.duration_s * NS_PER_S), tuple(messages), clip.notes, boxes)


def predict_clip(clip: Clip, predictor: Predictor, windows: Windows, hop_s: float = 0.5) -> Iterator[Moment]:
    """A prediction every `hop_s` seconds and at the clip's end, each from the data a live session has by then.

    Args:
        windows: of the predictor, for a batch of one; always the same object.
    """
    hop_ns = round(hop_s * NS_PER_S)
    assembler = Assembler(predictor.specs, InferenceConfig().max_age_ms, windows)
    place = assembler.place
    coming = iter(clip.messages)
    message = next(coming, None)
    for end_ns in [*range(hop_ns, clip.duration_ns, hop_ns), clip.duration_ns]:
        while message is not None and begins_ns(message) <= end_ns:
            assembler.push(message)
            message = next(coming, None)
        look = windows.look([place], [end_ns])
        (answer,) = predictor.predict_look(windows, look).rows()
        words = [word for track, there in zip(windows.tracks.values(), look.present[0], strict=True)
                 if there and isinstance(track, Snapshots) for word in track.words[place]]  # fmt: skip
        said, doubted = (_text(words, uncertain=uncertain) for uncertain in (False, True))
        yield Moment(end_ns / NS_PER_S, answer if answer.is_observed else None, said, doubted)
    windows.give_back(place)


class ClipRows(NamedTuple):
    """What `mien predict` writes for a clip: one row per prediction; or why there is none."""

    rows: list[dict[str, object]]
    notes: tuple[str, ...] = ()
    error: str = ""
    features: FeatureTable | None = None


class ClipPredictor:
    """Predicts clips one by one, loading models with the first. Until then it can be sent to another process.

    Args:
        checkpoint: folder or file, empty for the shipped one. asr: recogniser, or "none". hop_s: between predictions.
        tracks: which of a file's tracks to read.
        person: the person whose rest is the baseline for face and voice.
        features: whether to make tables of the features, too.

    Raises:
        CheckpointError: the model was trained for other extractors.
    """

    def __init__(
        self,
        checkpoint: str,
        engine: str,
        asr: str,
        hop_s: float,
        tracks: ClipConfig | None = None,
        person: Person | None = None,
        *,
        features: bool = False,
    ) -> None:
        self._features = features
        loaded = load_checkpoint(checkpoint)
        self.modalities = tuple(spec.name for spec in loaded.specs)
        made = live_specs(weights=weight_set(checkpoint))
        self._specs = {name: spec for name, spec in made.items() if name in self.modalities}
        check_extractors(loaded, self._specs.values())
        self._checkpoint, self._engine, self._asr, self._hop_s = checkpoint, engine, asr, hop_s
        self._tracks, self._person = tracks, person

    @cached_property
    def _opened(self) -> tuple[Predictor, Windows, Extractors]:
        """The model; extractors load on first use."""
        predictor, weights = Predictor(load_checkpoint(self._checkpoint), self._engine), weight_set(self._checkpoint)
        words = "" if self._asr == "none" else self._asr
        extractors = Extractors(
            tuple(self._specs), words, weights=weights, compared=True, tracks=self._tracks, person=self._person
        )
        return predictor, Windows(predictor.specs), extractors

    def make(self, path: str) -> ClipRows:
        predictor, windows, extractors = self._opened
        try:
            read = read_clip(Path(path), self._specs, extractors, self._asr != "none")
        except SourceError as error:
            return ClipRows([], error=str(error))
        tag = self._person.tag if self._person is not None else ""
        moments = predict_clip(read, predictor, windows, self._hop_s)
        rows = [_row(read.name, moment, self.modalities, with_person(predictor.id, tag)) for moment in moments]
        seen = FeatureTable() if self._features else None
        if seen is not None:
            seen.add(read.name, read.messages, read.boxes)
        return ClipRows(rows, read.notes, features=seen)

    def close(self) -> None:
        if "_opened" in vars(self):
            self._opened[2].close()
            del self._opened


def _row(name: str, moment: Moment, modalities: Sequence[str], model: str) -> dict[str, object]:
    row: dict[str, object] = {"clip": name, "t_s": round(moment.t_s, 3), "words": moment.words}
    row["uncertain_words"] = moment.uncertain
    answer = moment.answer
    if answer is not None:
        emotions = dict(zip(EMOTIONS, answer.emotions, strict=True))
        row |= {"sentiment": answer.sentiment, "emotion": max(emotions, key=emotions.__getitem__)}
        row |= emotions
        row |= {f"gate_{name}": share for name, share in zip(modalities, answer.shares, strict=True)}
        row |= {"confidence": answer.confidence, "model": model}
    return row


def _messages(clip: str, spec: ModalitySpec, pieces: Iterator[FeatureWindow]) -> list[FeatureWindow]:
    return [message_of(rows, spec, session=clip, run=0, seq=seq) for seq, rows in enumerate(pieces)]


def _pieces(spec: ModalitySpec, rows: RawRows) -> Iterator[FeatureWindow]:
    """Rows as a worker's messages: one per frame, or per chunk of sound."""
    size = max(1, _PIECE_NS // slot_ns(spec))
    after_ns = slot_ns(spec) // 2 if size > 1 else 0  # the time of an audio row is the middle of its slot
    for at in range(0, len(rows.values), size):
        part = slice(at, at + size)
        times_ns = rows.times_ns[part]
        yield FeatureWindow(
            t_start_ns=int(times_ns[0]), t_end_ns=int(times_ns[-1]) + after_ns, values=rows.values[part],
            valid=rows.valid[part], times_ns=times_ns,
        )  # fmt: skip


def _text(words: Sequence[Word], *, uncertain: bool) -> str:
    return " ".join(word.text.strip() for word in words if word.uncertain == uncertain)
