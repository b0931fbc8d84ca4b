"""`mien.analyze`: predictions for a file, a picture or arrays, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import msgspec
import numpy as np
import numpy.typing as npt

from mien.clock import NS_PER_S
from mien.config import Config
from mien.errors import InputError, SourceError
from mien.install import install_command
from mien.messages import EMOTIONS, MODALITIES, Prediction
from mien.stream.direct.given import checked_picture, checked_sound
from mien.stream.direct.recognizer import Frame, Options, Recognizer, Sound, settings_of
from mien.stream.direct.session import LocalSession
from mien.stream.processes.plan import plan_session
from mien.stream.sources.address import clip_source, printable

if TYPE_CHECKING:
    import pandas

Samples = npt.NDArray[Any]
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_LOOKED_S = 5.0  # how long a still picture is shown to the model: its window
_LOOKS_HZ = 10
_PIECE_S = 1.0  # chunk of an audio array


@dataclass(frozen=True)
class Analysis:
    """The predictions for a whole file, picture or array.

    Attributes:
        name: of the source.
        predictions: one per frame (without video, per chunk of audio), equal to those of `mien run --fast`, and a last
            one that has seen everything; for a picture, one.
        notes: remarks on the file, for display; for instance which audio track was used.
    """

    name: str
    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...] = field(default=())

    def to_pandas(self) -> pandas.DataFrame:
        """A table with one row per prediction.

        Its columns are `t_s` (seconds), `sentiment`, `sentiment_smooth`, `top_emotion`, each emotion, `confidence`,
        `gate_` and `age_ms_` of each modality, `words` and `abstains`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise InputError(f"to_pandas() needs the package pandas; {install_command('features')}") from error
        return pandas.DataFrame([_row(prediction) for prediction in self.predictions], columns=list(_COLUMNS))


def analyze(
    source: Any,
    *,
    rate: float | None = None,
    fps: float | None = None,
    progress: Callable[[Prediction], None] | None = None,
    **options: Unpack[Options],
) -> Analysis:
    """Predict a file, a picture or an array.

    Args:
        source: a file with video, audio or both, or a picture; or an array of uint8, (height, width, 3) for a picture
            or (frames, height, width, 3) with `fps`; or an audio array, (n,) or (n, channels), with `rate`. A picture
            is treated as five seconds of video.
        rate: samples per second of an audio array. fps: frames per second of an array of frames.
        progress: called with each prediction as it is made.
        options: asr, language, checkpoint, engine, person and config, as for `Recognizer`.

    Returns:
        The predictions. For a file they equal those of `mien run --fast`.

    Raises:
        SourceError: the file cannot be read. InputError: the array cannot be used.
        AssetError, ConfigError, CheckpointError, EngineError: as for `Recognizer`.
    """
    if isinstance(source, np.ndarray):
        name, predictions = _of_array(source, rate, fps, options)
        return Analysis(name, tuple(_observed(predictions, progress)))
    if not isinstance(source, str | Path):
        raise InputError(f"analyze takes a file's path or a NumPy array, not {type(source).__name__}")
    path = Path(source).expanduser()
    if path.suffix.lower() in PICTURES:
        predictions = _of_picture(_read_picture(path), options)
        return Analysis(path.name, tuple(_observed(predictions, progress)))
    with analyzing(path, settings_of(options)) as (running, name, notes):
        return Analysis(name, tuple(_observed(running.predictions(), progress)), notes)


@contextmanager
def analyzing(path: Path, settings: Config) -> Iterator[tuple[LocalSession, str, tuple[str, ...]]]:
    """A file's running session, its name, and notes for the user.

    Args:
        settings: of the session; the file replaces its devices.
    """
    played = clip_source(str(path))
    settings = msgspec.structs.replace(
        settings,
        video=msgspec.structs.replace(settings.video, source=played),
        audio=msgspec.structs.replace(settings.audio, source=played),
        clip=msgspec.structs.replace(settings.clip, fast=True, loop=False),
    )
    plan = plan_session(settings)
    with closing(LocalSession(plan)) as running:
        running.start(streams=True)
        yield running, plan.label, plan.notes


def _observed(predictions: Iterator[Prediction], progress: Callable[[Prediction], None] | None) -> Iterator[Prediction]:
    for prediction in predictions:
        if progress is not None:
            progress(prediction)
        yield prediction


def _of_array(
    array: Samples, rate: float | None, fps: float | None, options: Options
) -> tuple[str, Iterator[Prediction]]:
    """What an array is, and its predictions."""
    if rate is not None:
        checked_sound(array, rate)
        step = max(1, round(_PIECE_S * rate))
        pieces = (Sound(array[at : at + step], rate, at / rate) for at in range(0, len(array), step))
        return "sound", _of_inputs(Recognizer(video=False, **options), pieces)
    if array.ndim == 4:
        if fps is None or not 0 < fps <= 1000:
            raise InputError(f"an array of frames needs fps, frames per second; not {fps!r}")
        if not len(array):
            raise InputError("there are no frames in the array")
        checked_picture(array[0])
        frames = (Frame(image, number / fps) for number, image in enumerate(array))
        return "frames", _of_inputs(Recognizer(audio=False, **options), frames)
    if array.ndim < 3:
        raise InputError("an array of sound needs its rate: mien.analyze(samples, rate=16000)")
    return "picture", _of_picture(array, options)


def _of_inputs(recognizer: Recognizer, inputs: Iterator[Frame] | Iterator[Sound]) -> Iterator[Prediction]:
    with recognizer:
        yield from recognizer.every(inputs)


def _of_picture(image: Samples, options: Options) -> Iterator[Prediction]:
    checked_picture(image)
    with Recognizer(audio=False, **options) as recognizer:
        for look in range(round(_LOOKED_S * _LOOKS_HZ)):
            recognizer.frame(image, look / _LOOKS_HZ)
        yield recognizer.predict()


def _read_picture(path: Path) -> Samples:
    import cv2

    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)  # cv2.imread does not support every path
    except OSError as error:
        raise SourceError(f"picture {printable(str(path))} cannot be read: {error.strerror}") from error
    except cv2.error:
        image = None
    if image is None:
        raise SourceError(f"picture {printable(str(path))} cannot be read; choose another file")
    return np.asarray(image, np.uint8)


_COLUMNS = (
    *("t_s", "sentiment", "sentiment_smooth", "top_emotion", *EMOTIONS, "confidence"),
    *(f"{column}_{modality}" for column in ("gate", "age_ms") for modality in MODALITIES),
    *("words", "abstains"),
)


def _row(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {
        "t_s": prediction.t_end_ns / NS_PER_S,
        "sentiment": prediction.sentiment,
        "sentiment_smooth": prediction.sentiment_smooth,
        "top_emotion": prediction.top_emotion,
    }
    row |= {emotion: (prediction.emotions or {}).get(emotion) for emotion in EMOTIONS}
    row["confidence"] = prediction.confidence
    row |= {f"gate_{name}": share for name, share in prediction.gates.items()}
    row |= {f"age_ms_{name}": age for name, age in prediction.age_ms.items()}
    row["words"] = " ".join(word.text.strip() for word in prediction.words if not word.uncertain)
    row["abstains"] = prediction.abstains
    return row
