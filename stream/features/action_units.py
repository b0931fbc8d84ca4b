"""Action units of the Facial Action Coding System (FACS), estimated from blendshapes.

ARKit's blendshapes, which MediaPipe follows, are named after facial movements, most of which correspond to one action
unit of FACS (Ekman, Friesen, Hager 2002). The mapping below is mien's own. Values are those of blendshapes, 0 to 1:
neither FACS intensities A to E nor OpenFace's 0 to 5. For their correlation with OpenFace's see `agreement`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mien.messages import Float32

BLENDSHAPES = (
    "neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
_AT = {name: index for index, name in enumerate(BLENDSHAPES)}


class ActionUnit(NamedTuple):
    """A unit, and how it is estimated.

    Attributes:
        name: as "AU04". movement: its name in FACS. shapes: blendshapes, as named in the data dictionary.
        estimate: from blendshapes by name, each (n,), to (n,).
    """

    name: str
    movement: str
    shapes: str
    estimate: Callable[[Callable[[str], Float32]], Float32]


def _one(name: str, movement: str, shape: str) -> ActionUnit:
    return ActionUnit(name, movement, shape, lambda of: of(shape))


def _pair(name: str, movement: str, shape: str) -> ActionUnit:
    """The mean of both sides."""
    return _mean(name, movement, f"{shape}Left", f"{shape}Right")


def _mean(name: str, movement: str, first: str, second: str) -> ActionUnit:
    return ActionUnit(
        name, movement, f"mean of {first}, {second}", lambda of: np.float32(0.5) * (of(first) + of(second))
    )


def _parted(of: Callable[[str], Float32]) -> Float32:
    """Lips apart, by the jaw or by the lips themselves: no single blendshape covers both."""
    lowered = (of("mouthLowerDownLeft") + of("mouthLowerDownRight")) / 2
    raised = (of("mouthUpperUpLeft") + of("mouthUpperUpRight")) / 2
    parted: Float32 = np.maximum.reduce([of("jawOpen") - of("mouthClose"), lowered, raised])
    return np.maximum(parted, 0.0)


ACTION_UNITS = (
    _one("AU01", "inner brow raiser", "browInnerUp"),
    _pair("AU02", "outer brow raiser", "browOuterUp"),
    _pair("AU04", "brow lowerer", "browDown"),
    _pair("AU05", "upper lid raiser", "eyeWide"),
    _pair("AU06", "cheek raiser", "cheekSquint"),
    _pair("AU07", "lid tightener", "eyeSquint"),
    _pair("AU09", "nose wrinkler", "noseSneer"),
    _pair("AU10", "upper lip raiser", "mouthUpperUp"),
    _pair("AU12", "lip corner puller", "mouthSmile"),
    _pair("AU14", "dimpler", "mouthDimple"),
    _pair("AU15", "lip corner depressor", "mouthFrown"),
    _pair("AU16", "lower lip depressor", "mouthLowerDown"),
    _one("AU17", "chin raiser", "mouthShrugLower"),
    _one("AU18", "lip pucker", "mouthPucker"),
    _pair("AU20", "lip stretcher", "mouthStretch"),
    _one("AU22", "lip funneler", "mouthFunnel"),
    _pair("AU24", "lip pressor", "mouthPress"),
    ActionUnit("AU25", "lips part", "largest of jawOpen - mouthClose, mean mouthLowerDown, mean mouthUpperUp", _parted),
    _one("AU26", "jaw drop", "jawOpen"),
    _mean("AU28", "lip suck", "mouthRollLower", "mouthRollUpper"),
    _one("AU29", "jaw thrust", "jawForward"),
    ActionUnit(
        "AU30", "jaw sideways", "larger of jawLeft, jawRight", lambda of: np.maximum(of("jawLeft"), of("jawRight"))
    ),
    _one("AU34", "cheek puff", "cheekPuff"),
    _pair("AU45", "blink", "eyeBlink"),
    _mean("AU61", "eyes turn left", "eyeLookOutLeft", "eyeLookInRight"),
    _mean("AU62", "eyes turn right", "eyeLookInLeft", "eyeLookOutRight"),
    _pair("AU63", "eyes up", "eyeLookUp"),
    _pair("AU64", "eyes down", "eyeLookDown"),
)


def action_units(blendshapes: Float32) -> Float32:
    """Blendshapes (n, 52) to action units (n, 28), in the order of ACTION_UNITS, 0 to 1."""
    return np.stack([unit.estimate(lambda name: blendshapes[:, _AT[name]]) for unit in ACTION_UNITS], axis=1)
