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


POSE = (
    Column("head_yaw", "rad", "rotation; positive: towards the right of the image", "frame"),
    Column("head_pitch", "rad", "rotation; positive: down", "frame"),
    Column("head_roll", "rad", "tilt; positive: top of the head towards the left of the image", "frame"),
    Column("head_x", "tangent", "position relative to the optical axis; positive: right", "frame"),
    Column("head_y", "tangent", "position relative to the optical axis; positive: up", "frame"),
    Column("head_scale", "1", "apparent size: 1 at 0.5 m from the camera, 2 at 0.25 m", "frame"),
)
BOX = tuple(
    Column(f"box_{side}", "px", f"{side} edge of the face landmarks; empty in tables made from recordings", "frame")
    for side in ("left", "top", "right", "bottom")
)
UNITS = tuple(Column(unit.name, "0 to 1", f"{unit.movement}: {unit.shapes}", "frame") for unit in ACTION_UNITS)
SHAPES = tuple(Column(f"blendshape_{name}", "0 to 1", f"blendshape {name}", "frame") for name in BLENDSHAPES)
SOUND = (
    Column("energy", "ln(power)", "energy of 32 ms centred on the hop; full scale is 1", "hop"),
    Column("pitch", "Hz", "fundamental frequency (YIN); in unvoiced hops, the last one measured", "hop"),
    Column("periodicity", "0 to 1", "strength of the periodicity; the pitch is used from 0.5 up", "hop"),
    Column("zero_crossings", "0 to 1", "share of adjacent samples that differ in sign", "hop"),
    Column("voice_activity", "0 to 1", "probability of speech (Silero VAD)", "hop"),
)
MELS = tuple(
    Column(f"mel_{band:02d}", "ln(power)", f"mel band {band + 1} of {N_MELS}, 0 to 8 kHz", "hop")
    for band in range(N_MELS)
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
