"""Predictions over a clip, without a stream: the same extractors, the same words, windows and model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.clock import NS_PER_S
from mien.engines.predictor import Outputs, Predictor
from mien.errors import SourceError
from mien.messages import Float32, ModalitySpec, Window, Word
from mien.models.corpora import MEDIA_SUFFIXES, CorpusItem
from mien.models.datasets import Labels, Sample, make_track, window
from mien.stream.modality import Rows
from mien.stream.offline.extraction import Extractors
from mien.stream.sources.clip import open_clip, read_sound
from mien.windowing import WINDOW_NS, place_rows


@dataclass(frozen=True)
class Moment:
    """What the model says at `t_s` seconds into a clip; None where nothing was observed.

    `uncertain` words are shown only: the model does not see them.
    """

    t_s: float
    outputs: Outputs | None
    words: str = ""
    uncertain: str = ""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip's rows, its length, and its words: the messages of a live text worker, in order."""

    sample: Sample
    duration_ns: int
    said: tuple[Rows, ...] = ()

    def said_at(self, t_ns: int) -> Rows | None:
        """What the text worker has said last at `t_ns`."""
        index = bisect_right(self.said, t_ns, key=lambda rows: rows.t_end_ns)
        return self.said[index - 1] if index else None


def clips_in(path: Path) -> list[Path]:
    """The clip, or all clips in a folder and below it, sorted.

    Raises:
        SourceError: nothing is there.
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
    streams = open_clip(path)
    tracks = {}
    said: tuple[Rows, ...] = ()
    if streams.has_audio:
        sound = read_sound(path)
        if "audio" in specs:
            tracks["audio"] = make_track(specs["audio"], extractors.sound_rows(sound))
        if words and "text" in specs:
            said = tuple(extractors.said(sound))
    if streams.has_video and "vision" in specs:
        rows = extractors.picture_rows(CorpusItem(str(path), audio=path, video=path))
        tracks["vision"] = make_track(specs["vision"], rows)
    duration_ns = round(streams.duration_s * NS_PER_S)
    labels = Labels(id=str(path), corpus="clip", duration_ns=duration_ns)
    return Clip(Sample(labels, tracks), duration_ns, said)


def predict_clip(clip: Clip, predictor: Predictor, hop_s: float = 0.5) -> Iterator[Moment]:
    """A prediction every `hop_s` seconds, the last one at the clip's end."""
    hop_ns = round(hop_s * NS_PER_S)
    for end_ns in [*range(hop_ns, clip.duration_ns, hop_ns), clip.duration_ns]:
        features: dict[str, Float32] = {}
        mask: dict[str, Float32] = {}
        words: list[Word] = []
        for name, spec in predictor.specs.items():
            if name == "text":
                features[name], mask[name], words = _words(clip, spec, end_ns)
            else:
                # The last row whose slot has begun before the end.
                features[name], mask[name] = window(clip.sample, spec, end_ns - 1)
        observed = any(m.any() for m in mask.values())
        seen = Window(
            session=clip.sample.labels.id, seq=0, t_end_ns=end_ns, features=features, mask=mask,
            age_ms=dict.fromkeys(features),
        )  # fmt: skip
        outputs = predictor.predict(seen) if observed else None
        yield Moment(end_ns / NS_PER_S, outputs, _text(words, uncertain=False), _text(words, uncertain=True))


def _words(clip: Clip, spec: ModalitySpec, end_ns: int) -> tuple[Float32, Float32, list[Word]]:
    """Features, mask and words of the window that ends at `end_ns`."""
    said = clip.said_at(end_ns)
    if said is None:
        return np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32), []
    inside = said.times_ns > end_ns - WINDOW_NS
    words = [word for word, there in zip(said.words, inside, strict=True) if there]
    return *place_rows(spec, said.values, said.valid & inside, said.times_ns, end_ns), words


def _text(words: Sequence[Word], *, uncertain: bool) -> str:
    return " ".join(word.text.strip() for word in words if word.uncertain == uncertain)
