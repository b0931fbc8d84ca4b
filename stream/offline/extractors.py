"""The live extractors on files: an item's words, sound and pictures to rows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mien.assets import asset_path
from mien.clock import NS_PER_S
from mien.config import AssetsConfig, ClipConfig, TextConfig
from mien.errors import DataError
from mien.messages import MODALITIES, Float32, Int64, ModalitySpec, UInt8, Word
from mien.models.baseline import Person
from mien.models.data.corpora import Corpus, CorpusItem
from mien.models.data.datasets import RawRows, word_times_ns
from mien.models.weights import SHIPPED, WeightSet
from mien.stream.recording.stretch import is_recording, recorded_rows
from mien.stream.sources.clip import BrokenClipError, open_clip, read_sound, segment
from mien.stream.sources.geometry import upright_bgr
from mien.windowing import slot_ns

if TYPE_CHECKING:
    from mien.messages import FeatureWindow
    from mien.stream.modalities.audio import AudioExtractor
    from mien.stream.modalities.mediapipe_tasks import Box
    from mien.stream.modalities.text import TextEncoder
    from mien.stream.modalities.vision import VisionExtractor
    from mien.stream.speech.asr import Recognised, Recogniser

log = logging.getLogger(__name__)

_SLACK_NS = NS_PER_S // 2  # beyond a clip's end, as corpora round their times


def live_specs(modalities: Collection[str] = MODALITIES, weights: WeightSet = SHIPPED) -> dict[str, ModalitySpec]:
    """Specs of the extractors' rows with these weights."""
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


class Extractors:
    """The live extractors, opened on first use.

    Attributes:
        modalities: to extract from every item.
        weights: of the text and face encoders.
        tracks: which of a file's tracks to read.
        boxes: of the faces in the pictures read last, one per row, None without a face.

    Args:
        compared: whether voices are normalised by their own past, as in live sessions; not for training data.
        person: the person whose rest is the baseline for face and voice.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        asr: str = "",
        assets: AssetsConfig | None = None,
        weights: WeightSet = SHIPPED,
        compared: bool = False,
        person: Person | None = None,
        tracks: ClipConfig | None = None,
    ) -> None:
        self.weights, self._compared, self.tracks = weights, compared, tracks
        self._person = person
        self.modalities, self._asr, self._assets = tuple(modalities), asr, assets or AssetsConfig()
        self.boxes: list[Box | None] = []

    def rows(self, item: CorpusItem, corpus: Corpus | None = None) -> tuple[dict[str, RawRows], int, str | None]:
        """All rows of one item, its length in ns, and its words.

        Raises:
            SourceError: its clip cannot be read.
            DataError: it is empty.
        """
        if item.audio is not None and is_recording(item.audio):
            specs = live_specs([name for name in self.modalities if name != "text"], self.weights)
            encode = (lambda words: self.text.encode(words)) if "text" in self.modalities else None
            return recorded_rows(item.audio, item, specs, encode)
        rows: dict[str, RawRows] = {}
        duration_ns = 0
        if item.end_s is not None:
            duration_ns = round((item.end_s - (item.start_s or 0.0)) * NS_PER_S)
        words, word_times = (item.text or "").split(), None
        if item.audio is not None:
            clip = open_clip(item.audio, self.tracks)
            for note in clip.notes:
                log.warning("%s", note)
            there_ns = round((clip.duration_s - (item.start_s or 0.0)) * NS_PER_S)
            if there_ns <= 0:
                raise DataError(f"it begins at {item.start_s:g} s, and its clip lasts {clip.duration_s:g} s")
            if duration_ns - there_ns > _SLACK_NS:
                log.warning("%s ends at %g s, and its clip lasts %g s", item.id, item.end_s, clip.duration_s)
            duration_ns = min(duration_ns or there_ns, there_ns)
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
            rows["vision"] = self.still_rows(corpus.images[item.image])
        if words and "text" in self.modalities:
            times = word_times if word_times is not None else word_times_ns(len(words), duration_ns)
            values = self.text.encode(words)
            # Words beyond the encoder's maximum input have no row.
            rows["text"] = RawRows(values, (values != 0).any(1), np.asarray(times, np.int64))
            duration_ns = duration_ns or int(times[-1]) + 1
        return rows, duration_ns, " ".join(words) or None

    def close(self) -> None:
        if "vision" in vars(self):
            self.vision.close()
        for name in ("text", "audio", "vision", "recogniser"):
            vars(self).pop(name, None)

    def sound_rows(self, sound: Float32) -> RawRows:
        """Rows of a whole recording, mono, 16 kHz."""
        from mien.stream.modalities.audio import SPEC

        made, step_ns = self.audio.extract(sound), slot_ns(SPEC)
        return RawRows(made.values, made.valid, np.arange(len(made.values), dtype=np.int64) * step_ns + step_ns // 2)

    def still_rows(self, image: UInt8) -> RawRows:
        """The row of a photograph, at 0 s."""
        values, valid, _ = self.vision.still(image)
        return RawRows(values[None], np.array([valid]), np.zeros(1, np.int64))

    def picture_rows(self, item: CorpusItem) -> RawRows:
        """Rows of the pictures in an item's clip."""
        from mien.stream.modalities import vision

        assert item.video is not None
        start_ns = round((item.start_s or 0.0) * NS_PER_S)
        end_ns = None if item.end_s is None else round(item.end_s * NS_PER_S)
        self.vision.reset()
        values, valid = [np.zeros((0, vision.SPEC.dim), np.float32)], []
        times: list[int] = []
        self.boxes = []
        with contextlib.suppress(BrokenClipError):  # frames before the fault are valid
            for t_ns, frame in open_clip(item.video, self.tracks).pictures():
                if t_ns < start_ns or (times and t_ns - start_ns <= times[-1]):
                    continue
                if end_ns is not None and t_ns >= end_ns:
                    break
                row, seen, view = self.vision.row(upright_bgr(frame), t_ns - start_ns)
                self.boxes.append(view.box)
                values.append(row[None])
                valid.append(seen)
                times.append(t_ns - start_ns)
        return RawRows(np.concatenate(values), np.array(valid, np.bool_), np.array(times, np.int64))

    def recognised(self, sound: Float32) -> Iterator[Recognised]:
        """Hypotheses of the live recogniser over a whole recording, step by step."""
        return self.recogniser.whole(sound, TextConfig().step_ms)

    def word_messages(self, sound: Float32) -> Iterator[FeatureWindow]:
        """The messages of a live text worker over a whole recording."""
        from mien.stream.modalities.text import WordReader

        reader = WordReader(self.text, TextConfig().settle_s)
        return (reader.rows(step) for step in self.recognised(sound))

    def recognise(self, sound: Float32) -> tuple[list[str], Int64]:
        """The certain words that a live session commits in a recording, and the end of each in ns."""
        committed: list[Word] = []
        for step in self.recognised(sound):
            committed += step.committed
            # Later words decide whether a committed one is certain.
            recent = [word for word in step.words if word.committed]
            committed[len(committed) - len(recent) :] = recent
        words = [word for word in committed if not word.uncertain]
        return [word.text.strip() for word in words], np.array([word.t_end_ns for word in words], np.int64)

    @cached_property
    def text(self) -> TextEncoder:
        """Words to rows."""
        from mien.stream.modalities.text import TextEncoder

        return TextEncoder(asset_path("minilm-l6-v2", self._assets), "onnx", adapters=self.weights.text)

    @cached_property
    def audio(self) -> AudioExtractor:
        """Sound to rows."""
        from mien.stream.modalities.audio import AudioExtractor, voice_reference

        reference = voice_reference(self._person) if self._compared or self._person is not None else None
        return AudioExtractor(self._assets, reference)

    @cached_property
    def vision(self) -> VisionExtractor:
        """Pictures to rows."""
        from mien.stream.modalities.resting import face_rest
        from mien.stream.modalities.vision import VisionExtractor, vision_spec

        rest = face_rest(self._person, vision_spec(self.weights.face).extractor)
        return VisionExtractor(self._assets, weights=self.weights.face, rest=rest)

    @cached_property
    def recogniser(self) -> Recogniser:
        """Sound to words, for clips without a text."""
        from mien.stream.modalities.text import open_recogniser

        return open_recogniser(TextConfig(asr=self._asr), self._assets)
