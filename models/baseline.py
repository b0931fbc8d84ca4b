"""A person's resting face and voice, measured once, stored, and subtracted from live rows.

A resting face looks sad or angry because of its anatomy, and a resting voice sounds so because of its pitch, its
microphone and its language. `mien calibrate` measures both once. From then on the extractors compare rows with them:
recordings hold compared rows, and replay to the same bits.

- Voice: a reference that the user gave, see `mien.models.voice.reference`.
- Face: the embedding is shifted by FACE_SHARE of this resting face's offset from resting faces in general
  (`rest.json` next to the weights). Blendshapes and pose stay: shifting them did not help on people who talk.

Only means are stored, no picture and no sound.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import platformdirs

from mien.clock import NS_PER_S
from mien.errors import ConfigError
from mien.files import reason, write_file
from mien.messages import Bool, Float32
from mien.models.voice.columns import WEIGHT
from mien.models.voice.reference import Reference, measured_reference, neutral_reference
from mien.models.weights import REST

# The rainbow passage (Fairbanks, 1940), read aloud in speech laboratories ever since; it has no emotional content.
SENTENCE = (
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow. "
    "The rainbow is a division of white light into many beautiful colors."
)
SECONDS = 15.0
FORMAT = 1
FACE_SHARE = 0.5
LEAST_FACE_S = 3.0
HALF_S, LASTING_S, LONGEST_STEP_S = 60.0, 300.0, 1.0
ROW, EMBEDDING = 122, slice(58, 122)  # of a vision row: its size, and the face CNN's columns
VOICE_ROW = WEIGHT  # columns of an audio row before comparison
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_LARGEST_BYTES = 1 << 20
_LARGEST = 1e4  # no mean of a row comes anywhere near this
_AGAIN = "calibrate again with: mien calibrate {}"


class Rest(msgspec.Struct, frozen=True):
    """One modality at rest: the `mean` (D,) of rows of `extractor` over so many `seconds`."""

    extractor: str
    seconds: float
    mean: list[float]

    def values(self) -> Float32:
        return np.array(self.mean, np.float32)


class Baseline(msgspec.Struct, frozen=True):
    """A person at rest: `made` is the day in UTC; a modality that was not measured is None."""

    format: int
    made: str
    face: Rest | None = None
    voice: Rest | None = None


def check_name(name: str) -> str:
    """The name.

    Raises:
        ConfigError: the name is not valid.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name for a person: use up to 32 letters, digits, dashes and underscores")
    return name


def people_folder() -> Path:
    """The folder of baselines, next to the user's configuration."""
    return platformdirs.user_config_path("mien", appauthor=False) / "people"


def baseline_path(name: str) -> Path:
    """The file of a person.

    Raises:
        ConfigError: the name is not valid.
    """
    return people_folder() / f"{check_name(name)}.json"


def people() -> Iterator[str]:
    """Names of the people with a baseline, sorted."""
    for path in sorted(people_folder().glob("*.json")):
        if _NAME.fullmatch(path.stem):
            yield path.stem


def voice_at_rest(values: Float32, valid: Bool, extractor: str) -> Rest:
    """A voice baseline from raw rows (n, WEIGHT or more) of calm speech; `valid` (n,): voice active.

    Raises:
        ConfigError: there is too little voice.
    """
    reference, seconds = measured_reference(values, valid)
    return Rest(extractor, round(seconds, 2), reference.mean.tolist())


def face_at_rest(values: Float32, valid: Bool, seconds: float, extractor: str) -> Rest:
    """A face baseline from rows (n, D) of a resting face over that many seconds; `valid` (n,): face in view.

    Raises:
        ConfigError: the face was in view for too short a time.
    """
    seen_s = seconds * float(valid.mean()) if len(valid) else 0.0
    if seen_s < LEAST_FACE_S:
        raise ConfigError(
            f"a face was in view for {seen_s:.1f} s, {LEAST_FACE_S:.0f} are needed: look into the camera, with light "
            "from the front"
        )
    return Rest(extractor, round(seen_s, 2), values[valid].mean(0, dtype=np.float64).tolist())


def store(name: str, face: Rest | None, voice: Rest | None) -> Path:
    """Write or replace a person's baseline (mode 0600).

    Raises:
        ConfigError: the name is not valid. MienError: the file cannot be written.
    """
    path = baseline_path(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {path.parent}: {reason(error)}") from error
    today = datetime.now(UTC).date().isoformat()
    write_file(path, msgspec.json.encode(Baseline(FORMAT, today, face, voice)), private=True)
    return path


def forget(name: str) -> None:
    """Delete a person's baseline.

    Raises:
        ConfigError: there is none.
    """
    try:
        baseline_path(name).unlink()
    except OSError as error:
        raise _missing(name, error) from error


class Person:
    """A person with a measured baseline.

    Attributes:
        name: of the person. baseline: what was measured.
        tag: name and the first digits of the file's SHA-256, appended to the model id in predictions.
    """

    def __init__(self, name: str, baseline: Baseline, tag: str = "") -> None:
        self.name, self.baseline, self.tag = name, baseline, tag or name

    @classmethod
    def load(cls, name: str) -> Person:
        """Load a person that `mien calibrate` has measured.

        Raises:
            ConfigError: there is no such person, or the file is damaged or open to others.
        """
        path = baseline_path(name)
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_BYTES)
                mode = os.fstat(file.fileno()).st_mode
        except OSError as error:
            raise _missing(name, error) from error
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"others can read {path}; run: chmod 600 '{path}'")
        try:
            baseline = msgspec.json.decode(content, type=Baseline)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} is damaged ({error}); {_AGAIN.format(name)}") from error
        if baseline.format != FORMAT:
            raise ConfigError(f"{path} was made by another version of mien; {_AGAIN.format(name)}")
        return cls(name, baseline, f"{name}-{hashlib.sha256(content).hexdigest()[:8]}")

    def voice(self, extractor: str) -> Reference | None:
        """The reference to compare this extractor's rows with; None if the voice was not measured.

        Raises:
            ConfigError: it was measured with another extractor, or is damaged.
        """
        rest = self.baseline.voice
        if rest is None:
            return None
        return neutral_reference(self._checked(rest, extractor, WEIGHT))

    def face(self, extractor: str) -> Float32 | None:
        """The offset (D,) to subtract from this extractor's rows; None if the face was not measured.

        Raises:
            ConfigError: it was measured with another extractor, is damaged, or `rest.json` is of another one.
        """
        rest = self.baseline.face
        if rest is None:
            return None
        mean = self._checked(rest, extractor, ROW)
        general = faces_at_rest(extractor)
        moved = np.zeros_like(general)
        moved[EMBEDDING] = np.float32(FACE_SHARE) * (mean - general)[EMBEDDING]
        return moved

    @property
    def known(self) -> str:
        """What was measured, in words, and when."""
        parts = [name for name, rest in (("face", self.baseline.face), ("voice", self.baseline.voice)) if rest]
        return f"{' and '.join(parts)}, {self.baseline.made}"

    def summary(self, face: str, voice: str) -> dict[str, str | None]:
        """What was measured, in words, and whether it fits rows of these extractors."""
        facts: dict[str, str | None] = {"name": self.name, "tag": self.tag, "made": self.baseline.made}
        for what, rest in (("face", self.baseline.face), ("voice", self.baseline.voice)):
            facts[what] = None if rest is None else f"{rest.seconds:.1f} s"
        try:
            self.voice(voice)
            self.face(face)
            facts["state"] = "can be used"
        except ConfigError as error:
            facts["state"] = str(error)
        return facts

    def _checked(self, rest: Rest, extractor: str, size: int) -> Float32:
        mean = rest.values()
        if rest.extractor != extractor or mean.shape != (size,):
            raise ConfigError(
                f"{self.name} was calibrated with other weights or another version of mien ({rest.extractor}, now "
                f"{extractor}); {_AGAIN.format(self.name)}"
            )
        if not (np.abs(mean) < _LARGEST).all():
            raise ConfigError(f"the baseline of {self.name} is damaged; {_AGAIN.format(self.name)}")
        return mean


class RunningRest:
    """A running estimate of the resting face in this session: an offset as in `Person.face`, updated row by row.

    Its weight grows with the time that the face was in view, reaching half of FACE_SHARE after HALF_S. Rows older than
    LASTING_S fade out, so that a lasting expression is not mistaken for rest.
    """

    def __init__(self, extractor: str) -> None:
        self._general = faces_at_rest(extractor)
        self.reset()

    def reset(self) -> None:
        self._seconds, self._mean = 0.0, np.zeros(len(self._general))
        self._before_ns: int | None = None

    def __call__(self, row: Float32, t_ns: int) -> Float32:
        """The offset (D,) for this row of a face in view, from the rows before it; then learns from the row."""
        moved = np.zeros(len(row), np.float32)
        if self._seconds > 0:
            share = FACE_SHARE * self._seconds / (self._seconds + HALF_S)
            moved[EMBEDDING] = (share * (self._mean - self._general))[EMBEDDING]
        before_ns, self._before_ns = self._before_ns, t_ns
        if before_ns is not None:
            step_s = min((t_ns - before_ns) / NS_PER_S, LONGEST_STEP_S)
            self._seconds = min(self._seconds + step_s, LASTING_S)
            self._mean += (row - self._mean) * (step_s / self._seconds)
        return moved


def faces_at_rest(extractor: str) -> Float32:
    """The mean row (D,) of resting faces in general: neutral faces.

    Raises:
        ConfigError: none is stored for this extractor (it depends on the face encoder), or the file is damaged.
    """
    try:
        general = msgspec.json.decode(REST.read_bytes(), type=Rest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{REST} cannot be read ({error}); install mien again") from error
    if general.extractor != extractor:
        raise ConfigError(
            "resting faces are known for the shipped face encoder only; use that, or leave out --person and "
            f"person.adapt ({general.extractor}, not {extractor})"
        )
    return general.values()


def find_person(name: str) -> Person | None:
    """The person that a setting names; None if it is empty.

    Raises:
        ConfigError: as `Person.load`.
    """
    return Person.load(name) if name else None


def _missing(name: str, error: OSError) -> ConfigError:
    if not isinstance(error, FileNotFoundError):
        return ConfigError(f"the baseline of {name} cannot be used: {reason(error)}")
    known = ", ".join(people())
    return ConfigError(
        f"nobody called {name!r} was calibrated" + (f"; there is {known}" if known else "")
        + f"; do so with: mien calibrate {name}"
    )  # fmt: skip
