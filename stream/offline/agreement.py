"""How well action units from blendshapes agree with those of OpenFace, by emotion.

    python -m mien.stream.offline.agreement UNITS.npz FACES

UNITS holds OpenFace's units of RAVDESS videos: `ids` as 01-01-EE-II-SS-RR-AA, `columns`, `units` (n, columns). FACES is
a labelled corpus of faces. People and pictures differ, so only means can be compared: for each unit, the Pearson
correlation over the seven emotions between its mean in FACES and its mean in UNITS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mien.errors import DataError
from mien.messages import EMOTIONS
from mien.stream.features.action_units import ACTION_UNITS, action_units
from mien.stream.modalities.vision import BLENDSHAPES
from mien.stream.offline.items import ExtractOptions
from mien.stream.offline.labelled import read_labelled

Reals = npt.NDArray[np.float64]
# RAVDESS's numbers; 02 is calm, which the others do not have.
_RAVDESS = {"01": "neutral", "03": "happy", "04": "sad", "05": "angry", "06": "fear", "07": "disgust", "08": "surprise"}


def openface_means(path: Path) -> dict[str, Reals]:
    """Mean intensity of each unit, by its name as "AU04", per emotion (7,).

    Raises:
        DataError: the file has another format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, columns, units = file["ids"].tolist(), file["columns"].tolist(), file["units"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no action units: {error}") from error
    emotions = np.array([_RAVDESS.get(name.split("-")[2], "") for name in ids])
    return {
        column.removesuffix("_r"): np.array([units[emotions == emotion, k].mean() for emotion in EMOTIONS], np.float64)
        for k, column in enumerate(columns)
        if column.endswith("_r")
    }


def blendshape_means(faces: Path) -> dict[str, Reals]:
    """Mean of each unit per emotion (7,), over the faces of a corpus that have landmarks.

    Raises:
        DataError: the corpus cannot be read, or an emotion has no face.
    """
    dataset = read_labelled([faces], ExtractOptions(modalities=("vision",)))
    rows, emotions = [], []
    for sample in dataset.samples:
        if sample.emotion is None or "vision" not in sample.tracks:
            continue
        shapes = sample.tracks["vision"].values[sample.tracks["vision"].mask > 0][:, BLENDSHAPES]
        shapes = shapes[shapes.any(axis=1)]
        if len(shapes):
            rows.append(shapes.mean(axis=0))
            emotions.append(sample.emotion)
    found = np.array(emotions)
    missing = [emotion for number, emotion in enumerate(EMOTIONS) if not (found == number).any()]
    if missing:
        raise DataError(f"{faces} has no face that is {missing[0]}")
    units = action_units(np.stack(rows))
    return {
        unit.name: np.array([units[found == number, k].mean() for number in range(len(EMOTIONS))], np.float64)
        for k, unit in enumerate(ACTION_UNITS)
    }


def agreement_table(ours: dict[str, Reals], theirs: dict[str, Reals]) -> str:
    """Markdown table of the units that both have: the correlation of their means by emotion; nan if one is constant.

    It also names the emotion in which each side has the unit strongest.
    """
    lines = ["| unit | movement | r | strongest here | strongest in OpenFace |", "|---|---|---|---|---|"]
    correlations: list[float] = []
    for unit in ACTION_UNITS:
        if unit.name in theirs:
            pair = ours[unit.name], theirs[unit.name]
            constant = any(np.ptp(each) == 0 for each in pair)
            correlations.append(np.nan if constant else float(np.corrcoef(*pair)[0, 1]))
            strongest = (EMOTIONS[int(each.argmax())] for each in pair)
            lines.append(f"| {unit.name} | {unit.movement} | {correlations[-1]:.2f} | {' | '.join(strongest)} |")
    return "\n".join([*lines, f"| mean | | {float(np.nanmean(correlations)):.2f} | | |"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m mien.stream.offline.agreement UNITS.npz FACES")
    print(agreement_table(blendshape_means(Path(sys.argv[2])), openface_means(Path(sys.argv[1]))))
