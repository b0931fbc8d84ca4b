"""The columns of feature tables: their only list, and the data dictionary shown in the documentation.

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
        name: its name. unit: of its numbers; empty for text and flags.
        meaning: description. kind: of the rows that have it; empty in all others.
        type: of its values.
    """

    name: str
    unit: str
    meaning: str
    kind: Kind
    type: Type = "number"


POSE = (
    Column("head_yaw", "rad", "positive: the face turns to the right of the picture", "frame"),
    Column("head_pitch", "rad", "positive: down", "frame"),
    Column("head_roll", "rad", "positive: the top of the head tilts to the left of the picture", "frame"),
    Column("head_x", "tangent", "where the head is, from the optical axis, positive: right", "frame"),
    Column("head_y", "tangent", "likewise, positive: up", "frame"),
    Column("head_scale", "1", "1 at half a metre from the camera, 2 at half of that", "frame"),
)
BOX = tuple(
    Column(f"box_{side}", "px", f"{side} edge of the face's landmarks; empty in tables of recordings", "frame")
    for side in ("left", "top", "right", "bottom")
)
UNITS = tuple(Column(unit.name, "0 to 1", f"{unit.movement}: {unit.shapes}", "frame") for unit in ACTION_UNITS)
SHAPES = tuple(Column(f"blendshape_{name}", "0 to 1", f"blendshape {name}", "frame") for name in BLENDSHAPES)
SOUND = (
    Column("energy", "ln(power)", "of 32 ms around the middle of the hop; full scale is 1", "hop"),
    Column("pitch", "Hz", "fundamental frequency (YIN); where the hop has none, the last one heard", "hop"),
    Column("periodicity", "0 to 1", "how much the hop repeats itself; a pitch is believed from 0.5 on", "hop"),
    Column("zero_crossings", "0 to 1", "share of neighbouring samples of opposite sign", "hop"),
    Column("voice_activity", "0 to 1", "probability of speech (Silero VAD)", "hop"),
)
MELS = tuple(
    Column(f"mel_{band:02d}", "ln(power)", f"mel band {band + 1} of {N_MELS}, 0 to 8 kHz", "hop")
    for band in range(N_MELS)
)
WORD = (
    Column("word", "", "as it was recognised", "word", "text"),
    Column("word_end_s", "s", "end of the word; it begins at t_s", "word"),
    Column("word_probability", "0 to 1", "of the recogniser", "word"),
)
COLUMNS = (
    Column("clip", "", "file that the row is of", "all", "text"),
    Column("t_s", "s", "since the clip or the recording began: frame, middle of the hop, beginning of the word", "all"),
    Column("kind", "", "frame, hop (20 ms of sound) or word", "all", "text"),
    Column("valid", "", "a face was found; a voice is active; the word is certain", "all", "flag"),
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
