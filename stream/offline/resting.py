"""People who just talk, read with and without a baseline of their rest, measured in their first seconds.

Such clips have no labels. Counted is how many seconds are called something other than neutral, by the prediction of a
live session at each full second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mien.clock import NS_PER_S
from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.errors import ConfigError, DataError, SourceError
from mien.messages import EMOTIONS, Bool, FeatureWindow, Float32, ModalitySpec
from mien.models.baseline import FORMAT, Baseline, Person, Rest, face_at_rest, voice_at_rest
from mien.models.voice.reference import compare
from mien.stream.modalities.audio import voice_reference
from mien.stream.offline.clips import Clip, predict_clip, read_clip
from mien.stream.offline.extractors import Extractors


def resting(
    clips: Sequence[Path],
    predictor: Predictor,
    extractors: Extractors,
    seconds: float,
    person: Person | None = None,
    *,
    words: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict clips with and without a baseline of the person's rest.

    Args:
        extractors: without a baseline.
        seconds: length of the rest at the beginning of each clip, which is not counted. Clips that are no longer than
            that are left out; a modality present for less than three seconds has no baseline.
        person: whose rest is used instead for all clips; all seconds from `seconds` on still count.

    Returns:
        Per clip and under "all": `seconds` that count, and the emotions predicted for them, `without` and `with`.

    Raises:
        DataError: no clip is left.
    """
    specs = {name: spec for name, spec in predictor.specs.items() if name in extractors.modalities}
    windows = Windows(predictor.specs)
    made: dict[str, dict[str, Any]] = {}
    for number, path in enumerate(clips):
        if progress is not None:
            progress(number, len(clips))
        try:
            clip = read_clip(path, specs, extractors, words)
        except SourceError:
            continue
        if clip.duration_ns < (seconds + 1) * NS_PER_S:
            continue
        at_rest = person or _person(clip, specs, seconds)
        said = [_said(_compared(clip, specs, who), predictor, windows, seconds) for who in (None, at_rest)]
        measured = [m for m, rest in (("face", at_rest.baseline.face), ("voice", at_rest.baseline.voice)) if rest]
        made[clip.name] = {"rest": measured, "seconds": len(said[0]), "without": said[0], "with": said[1]}
    if progress is not None:
        progress(len(clips), len(clips))
    if not made:
        raise DataError(f"no clip is longer than {seconds + 1:.0f} s; give longer ones or a smaller --baseline")
    made["all"] = {
        "seconds": sum(each["seconds"] for each in made.values()),
        **{how: [name for each in made.values() for name in each[how]] for how in ("without", "with")},
    }
    return made


def _person(clip: Clip, specs: dict[str, ModalitySpec], seconds: float) -> Person:
    """The person in a clip, from its first seconds."""
    end_ns = round(seconds * NS_PER_S)
    rests: dict[str, Rest | None] = {"vision": None, "audio": None}
    for name in rests.keys() & specs.keys():
        values, valid = _rows(clip, name, end_ns)
        extractor = specs[name].extractor
        try:
            if name == "vision":
                rests[name] = face_at_rest(values, valid, seconds, extractor)
            else:
                rests[name] = voice_at_rest(values, valid, extractor)
        except ConfigError:  # too little of it
            continue
    return Person(clip.name, Baseline(FORMAT, "", rests["vision"], rests["audio"]))


def _rows(clip: Clip, name: str, end_ns: int) -> tuple[Float32, Bool]:
    parts = [m for m in clip.messages if m.modality == name and m.t_end_ns <= end_ns]
    if not parts:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.bool_)
    return np.concatenate([m.values for m in parts]), np.concatenate([m.valid for m in parts])


def _compared(clip: Clip, specs: dict[str, ModalitySpec], person: Person | None) -> Clip:
    """A clip extracted without a baseline, as a live session with one would have extracted it."""
    voice = voice_reference(person)
    face = person.face(specs["vision"].extractor) if person is not None and "vision" in specs else None
    messages: list[FeatureWindow] = []
    for message in clip.messages:
        values = message.values
        if message.modality == "audio":
            values = voice(values, message.valid) if callable(voice) else compare(values, voice)
        elif message.modality == "vision" and face is not None:
            values = np.where(message.valid[:, None], values - face, values)
        messages.append(msgspec.structs.replace(message, values=values))
    return Clip(clip.name, clip.duration_ns, tuple(messages), clip.notes)


def _said(clip: Clip, predictor: Predictor, windows: Windows, seconds: float) -> list[str]:
    return [
        EMOTIONS[int(np.argmax(moment.answer.emotions))]
        for moment in predict_clip(clip, predictor, windows, 1.0)
        if moment.answer is not None and moment.t_s > seconds and moment.t_s == int(moment.t_s)
    ]
