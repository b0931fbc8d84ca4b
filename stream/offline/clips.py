"""Predictions over a clip, without a stream: the same extractors, the same windows, the same model.

Only the words may differ from a live run: here the recogniser hears the clip as a whole, and a word counts from its
end, whereas a stream commits to it a little later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mien.clock import NS_PER_S
from mien.engines.predictor import Outputs, Predictor
from mien.errors import SourceError
from mien.messages import Float32, ModalitySpec, Window
from mien.models.corpora import AUDIO_SUFFIXES, VIDEO_SUFFIXES, CorpusItem
from mien.models.datasets import Labels, Sample, make_track, window
from mien.stream.offline.extraction import Extractors
from mien.stream.sources.clip import clip_streams, read_sound

WINDOW_NS = 5 * NS_PER_S


@dataclass(frozen=True)
class Moment:
    """What the model says at `t_s` seconds into a clip; None where nothing was observed."""

    t_s: float
    outputs: Outputs | None
    words: str = ""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip's rows, its words, and its length."""

    sample: Sample
    duration_ns: int
    words: tuple[str, ...] = ()
    word_ends_ns: tuple[int, ...] = ()
    encoded: dict[tuple[str, ...], Float32] = field(default_factory=dict)


def clips_in(path: Path) -> list[Path]:
    """The clip, or all clips in a folder and below it, sorted.

    Raises:
        SourceError: nothing is there.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES)
    if not found:
        raise SourceError(f"{path} is neither a clip nor a folder with clips")
    return found


def read_clip(path: Path, specs: dict[str, ModalitySpec], extractors: Extractors, words: bool) -> Clip:
    """Extract a whole clip.

    Raises:
        SourceError: it cannot be read.
    """
    streams = clip_streams(path)
    tracks = {}
    said: tuple[list[str], list[int]] = ([], [])
    if streams.has_audio:
        sound = read_sound(path)
        if "audio" in specs:
            tracks["audio"] = make_track(specs["audio"], extractors.sound_rows(sound))
        if words and "text" in specs:
            heard, ends = extractors.recognise(sound)
            said = heard, ends.tolist()
    if streams.has_video and "vision" in specs:
        rows = extractors.picture_rows(CorpusItem(str(path), audio=path, video=path))
        tracks["vision"] = make_track(specs["vision"], rows)
    duration_ns = round(streams.duration_s * NS_PER_S)
    labels = Labels(id=str(path), corpus="clip", duration_ns=duration_ns)
    return Clip(Sample(labels, tracks), duration_ns, tuple(said[0]), tuple(said[1]))


def predict_clip(clip: Clip, predictor: Predictor, extractors: Extractors, hop_s: float = 0.5) -> Iterator[Moment]:
    """A prediction every `hop_s` seconds, the last one at the clip's end."""
    hop_ns = round(hop_s * NS_PER_S)
    for end_ns in [*range(hop_ns, clip.duration_ns, hop_ns), clip.duration_ns]:
        features: dict[str, Float32] = {}
        mask: dict[str, Float32] = {}
        said: tuple[str, ...] = ()
        for name, spec in predictor.specs.items():
            if name == "text":
                ends = np.array(clip.word_ends_ns, np.int64)
                inside = (ends <= end_ns) & (ends > end_ns - WINDOW_NS)
                said = tuple(word for word, there in zip(clip.words, inside, strict=True) if there)
                features[name], mask[name] = _words(clip, said, spec, extractors)
            else:
                # The last row whose slot has begun before the end.
                features[name], mask[name] = window(clip.sample, spec, end_ns - 1)
        observed = any(m.any() for m in mask.values())
        seen = Window(
            session=clip.sample.labels.id, seq=0, t_end_ns=end_ns, features=features, mask=mask,
            age_ms=dict.fromkeys(features),
        )  # fmt: skip
        yield Moment(end_ns / NS_PER_S, predictor.predict(seen) if observed else None, " ".join(said))


def _words(clip: Clip, said: tuple[str, ...], spec: ModalitySpec, extractors: Extractors) -> tuple[Float32, Float32]:
    features, mask = np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
    if said:
        if said not in clip.encoded:
            clip.encoded[said] = extractors.text.encode(said)
        rows = clip.encoded[said][-spec.steps :]
        features[: len(rows)], mask[: len(rows)] = rows, 1.0
    return features, mask
