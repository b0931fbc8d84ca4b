"""The columns of feature tables: the single list, and the data dictionary shown in the documentation.

python -m mien.stream.features.columns      # the dictionary as Markdown
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mien.models.voice.columns import N_MELS
from mien.stream.features.action_units import ACTION_UNITS, BLENDSHAPES

Kind = Literal["all", "frame", "hop", "word"]
Type = Literal["number", "text", "flag"]


class Column(NamedTuple):
    """A column.

    Attributes:
        name: column name. unit: unit of the values; empty for text and flags.
        meaning: description. kind: which rows have a value; the cell is empty in all others.
        type: type of the values.
    """

    name: str
    unit: str
    meaning: str
    kind: Kind
    type: Type = "number"


def _columns(kind: Kind, *rows: tuple[str, str, str]) -> tuple[Column, ...]:
    """Columns of numbers: name, unit and meaning of each."""
    return tuple(Column(*row, kind) for row in rows)


POSE = _columns(
    "frame",
    ("head_yaw", "rad", "rotation; positive: towards the right of the image"),
    ("head_pitch", "rad", "rotation; positive: down"),
    ("head_roll", "rad", "tilt; positive: top of the head towards the left of the image"),
    ("head_x", "tangent", "position relative to the optical axis; positive: right"),
    ("head_y", "tangent", "position relative to the optical axis; positive: up"),
    ("head_scale", "1", "apparent size: 1 at 0.5 m from the camera, 2 at 0.25 m"),
)
BOX = _columns(
    "frame",
    *((f"box_{side}", "px", f"{side} edge of the face landmarks; empty in tables made from recordings")
      for side in ("left", "top", "right", "bottom")),
)  # fmt: skip
UNITS = _columns("frame", *((unit.name, "0 to 1", f"{unit.movement}: {unit.shapes}") for unit in ACTION_UNITS))
SHAPES = _columns("frame", *((f"blendshape_{name}", "0 to 1", f"blendshape {name}") for name in BLENDSHAPES))
SOUND = _columns(
    "hop",
    ("energy", "ln(power)", "energy of 32 ms centred on the hop; full scale is 1"),
    ("pitch", "Hz", "fundamental frequency (YIN); in unvoiced hops, the last one measured"),
    ("periodicity", "0 to 1", "strength of the periodicity; the pitch is used from 0.5 up"),
    ("zero_crossings", "0 to 1", "share of adjacent samples that differ in sign"),
    ("voice_activity", "0 to 1", "probability of speech (Silero VAD)"),
)
MELS = _columns(
    "hop", *((f"mel_{band:02d}", "ln(power)", f"mel band {band + 1} of {N_MELS}, 0 to 8 kHz") for band in range(N_MELS))
)
WORD = (
    Column("word", "", "recognised word", "word", "text"),
    Column("word_end_s", "s", "end of the word; t_s is its start", "word"),
    Column("word_probability", "0 to 1", "confidence of the speech recogniser", "word"),
)
COLUMNS = (
    Column("clip", "", "source file", "all", "text"),
    Column("t_s", "s", "time since the start: of the frame, the middle of the hop, the start of the word", "all"),
    Column("kind", "", "frame, hop (20 ms of audio) or word", "all", "text"),
    Column("valid", "", "frame: a face was found; hop: a voice is active; word: confidently recognised", "all", "flag"),
    *POSE,
    *BOX,
    *UNITS,
    *SHAPES,
    *SOUND,
    *MELS,
    *WORD,
)  # fmt: skip


def dictionary() -> str:
    """The data dictionary: a table in Markdown."""
    lines = ["| column | unit | rows | meaning |", "|---|---|---|---|"]
    lines += [f"| `{column.name}` | {column.unit} | {column.kind} | {column.meaning} |" for column in COLUMNS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(dictionary())
