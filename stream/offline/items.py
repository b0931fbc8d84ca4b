"""Rows of one corpus item, its augmented and damaged copies, and the options for making them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from mien.clock import NS_PER_S
from mien.config import AssetsConfig, ClipConfig
from mien.errors import ConfigError, DataError, RecordingError, SourceError, suggestion
from mien.messages import EMOTIONS, MODALITIES
from mien.models.architecture import Natural
from mien.models.data.corpora import Corpus, CorpusItem, read_corpus
from mien.models.data.datasets import Labels, RawRows
from mien.models.data.labels import SPLITS, Skipped
from mien.models.weights import WeightSet
from mien.stream.offline.damage import Damaging, damaged_copies, seeded, without_punctuation
from mien.stream.offline.extractors import Extractors
from mien.stream.sources.clip import read_sound, segment
from mien.stream.sources.source import SAMPLE_RATE

SHORTEST_PART = 0.2  # of a sentence's words, kept in a shortened copy


class ExtractOptions(msgspec.Struct, frozen=True):
    """What to extract.

    Raises:
        ConfigError: a modality or split that does not exist.

    Attributes:
        modalities: to extract, where an item has them.
        splits: of items; empty means all.
        audio_copies: perturbed copies of every training clip's sound.
        partial_texts: fraction of training texts that get a copy with only part of their words, as often seen in a
            window of a live stream.
        asr: recogniser for clips without a text; empty or "none" leaves their words out.
        limit: items per corpus and split, for experiments; 0 takes all.
        train_limits: training items per corpus, by its name, drawn with `seed`.
        damaging: damaged copies, for learning and measuring reliability.
        audio_track, video_track: which of a clip's tracks, counted from 1; 0 takes the one that a live session would.
    """

    modalities: tuple[str, ...] = MODALITIES
    splits: tuple[str, ...] = ()
    audio_copies: Natural = 0
    partial_texts: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    asr: str = ""
    limit: Natural = 0
    train_limits: dict[str, int] = {}
    damaging: Damaging = Damaging()
    seed: Natural = 1111
    audio_track: Natural = 0
    video_track: Natural = 0

    def __post_init__(self) -> None:
        for what, names, known in (("modality", self.modalities, MODALITIES), ("split", self.splits, SPLITS)):
            for name in names:
                if name not in known:
                    raise ConfigError(f"there is no {what} {name!r}; {suggestion(name, known)}")
        if self.asr == "none":  # one spelling, so that equal options make equal plans
            msgspec.structs.force_setattr(self, "asr", "")


# Rows made of an item, and why it was skipped, if it was; rows made before that are kept.
MadeItem = tuple[list[tuple[Labels, dict[str, RawRows]]], Skipped | None]


class ItemMaker:
    """Makes rows of items, opening each corpus and extractor on first use.

    It can be sent to another process before its first item; corpora are then read there, at the same paths.
    """

    def __init__(
        self, options: ExtractOptions, modalities: Sequence[str], assets: AssetsConfig, weights: WeightSet
    ) -> None:
        self._options = options
        self._corpora: dict[str, Corpus] = {}
        tracks = ClipConfig(audio_track=options.audio_track, video_track=options.video_track)
        self.extractors = Extractors(modalities, options.asr, assets, weights, tracks=tracks)

    def make(self, source: str, position: int) -> MadeItem:
        """Rows of the item at a position in a corpus.

        Raises:
            AssetError, CheckpointError: an extractor cannot be opened, whatever the item.
        """
        if source not in self._corpora:
            self._corpora[source] = read_corpus(Path(source))
        corpus = self._corpora[source]
        item = corpus.items[position]
        made: list[tuple[Labels, dict[str, RawRows]]] = []
        try:
            made += self._rows(corpus, item)
        except (SourceError, DataError, RecordingError) as error:
            return made, Skipped(item.id, str(error))
        return made, None

    def close(self) -> None:
        self.extractors.close()

    def _rows(self, corpus: Corpus, item: CorpusItem) -> Iterator[tuple[Labels, dict[str, RawRows]]]:
        rows, duration_ns, text = self.extractors.rows(item, corpus)
        if not rows:
            raise DataError("it has none of the requested modalities")
        same = {name: getattr(item, name) for name in ("id", "split", "speaker", "sentiment", "coarse")}
        labels = Labels(
            **same,
            corpus=corpus.name,
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
        yield from damaged_copies(self.extractors, corpus, item, labels, self._options.damaging)

    def _copies(self, corpus: Corpus, item: CorpusItem, labels: Labels) -> Iterator[tuple[Labels, dict[str, RawRows]]]:
        options = self._options
        random = seeded(f"{options.seed} {corpus.name} {item.id}")
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
    """A contiguous part of the words, as in a window that starts late or ends early.

    Half of the time in lower case without punctuation, as from a recogniser.
    """
    count = max(1, round(len(words) * random.uniform(SHORTEST_PART, 1.0)))
    begin = int(random.integers(0, len(words) - count + 1)) if random.random() < 0.4 else 0
    part = words[begin : begin + count]
    if random.random() < 0.5:
        part = without_punctuation(part) or part
    return part
