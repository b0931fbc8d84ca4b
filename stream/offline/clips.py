"""Predictions over a clip, without a stream: the same extractors, the same words, windows and model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mien.clock import NS_PER_S
from mien.config import InferenceConfig
from mien.engines.predictor import Outputs, Predictor
from mien.errors import SourceError
from mien.messages import FeatureWindow, ModalitySpec, Word
from mien.models.data.corpora import MEDIA_SUFFIXES, CorpusItem
from mien.models.data.datasets import RawRows
from mien.stream.inference.assembler import Assembler
from mien.stream.inference.schedule import begins_ns
from mien.stream.modalities.base import Rows
from mien.stream.offline.extractors import Extractors
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
    outputs: Outputs | None
    words: str = ""
    uncertain: str = ""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip's length, and the messages of its workers in a live session, in order of time."""

    name: str
    duration_ns: int
    messages: tuple[FeatureWindow, ...]
    notes: tuple[str, ...] = ()


def clips_in(path: Path) -> list[Path]:
    """The clip, or all clips in a folder and below it, sorted.

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
    if clip.has_audio:
        sound = read_sound(path, extractors.tracks)
        if "audio" in specs:
            messages += _messages(name, specs["audio"], _pieces(specs["audio"], extractors.sound_rows(sound)))
        if words and "text" in specs:
            messages += _messages(name, specs["text"], extractors.said(sound))
    if clip.has_video and "vision" in specs:
        rows = extractors.picture_rows(CorpusItem(str(path), audio=path, video=path))
        messages += _messages(name, specs["vision"], _pieces(specs["vision"], rows))
    messages.sort(key=begins_ns)
    return Clip(name, round(clip.duration_s * NS_PER_S), tuple(messages), clip.notes)


def predict_clip(clip: Clip, predictor: Predictor, hop_s: float = 0.5) -> Iterator[Moment]:
    """A prediction every `hop_s` seconds and at the clip's end, each from what a live session has by then."""
    hop_ns = round(hop_s * NS_PER_S)
    assembler = Assembler(predictor.specs, InferenceConfig().max_age_ms)
    coming = iter(clip.messages)
    message = next(coming, None)
    for end_ns in [*range(hop_ns, clip.duration_ns, hop_ns), clip.duration_ns]:
        while message is not None and begins_ns(message) <= end_ns:
            assembler.push(message)
            message = next(coming, None)
        seen = assembler.window(clip.name, end_ns)
        outputs = predictor.predict(seen) if any(mask.any() for mask in seen.mask.values()) else None
        yield Moment(end_ns / NS_PER_S, outputs, _text(seen.words, uncertain=False), _text(seen.words, uncertain=True))


def _messages(clip: str, spec: ModalitySpec, said: Iterator[Rows]) -> list[FeatureWindow]:
    return [
        FeatureWindow(
            session=clip, modality=spec.name, run=0, seq=seq, t_start_ns=rows.t_start_ns, t_end_ns=rows.t_end_ns,
            extractor=spec.extractor, values=rows.values, valid=rows.valid, times_ns=rows.times_ns, words=rows.words,
        )
        for seq, rows in enumerate(said)
    ]  # fmt: skip


def _pieces(spec: ModalitySpec, rows: RawRows) -> Iterator[Rows]:
    """Rows in a worker's messages: one for each frame, or those of a chunk of sound."""
    size = max(1, _PIECE_NS // slot_ns(spec))
    after_ns = slot_ns(spec) // 2 if size > 1 else 0  # the time of a row of sound is the middle of its slot
    for at in range(0, len(rows.values), size):
        part = slice(at, at + size)
        times_ns = rows.times_ns[part]
        yield Rows(
            t_start_ns=int(times_ns[0]), t_end_ns=int(times_ns[-1]) + after_ns, values=rows.values[part],
            valid=rows.valid[part], times_ns=times_ns,
        )  # fmt: skip


def _text(words: Sequence[Word], *, uncertain: bool) -> str:
    return " ".join(word.text.strip() for word in words if word.uncertain == uncertain)
