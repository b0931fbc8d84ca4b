"""Rebuild `models/weights/rest.json` after a change of the face encoder: how faces look at rest in general.

    python scripts/faces_at_rest.py FERPLUS_VALID.npz

The mean row of 400 faces that a majority of annotators calls neutral, as far as landmarks are found in them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from mien.models.baseline import Rest
from mien.models.data.face_files import read_faces, vote
from mien.models.weights import REST
from mien.stream.modalities.vision import SPEC, VisionExtractor

FACES, SEED = 400, 0


def main(path: Path) -> None:
    """Read the faces of a file with votes and write their mean."""
    images, _, votes = read_faces(path)
    assert votes is not None, "a file with votes, as FER+"
    neutral = [n for n, seen in enumerate(map(vote, votes)) if not isinstance(seen, str) and seen[1] == "neutral"]
    extractor = VisionExtractor()
    try:
        stills = [extractor.still(images[n]) for n in np.random.default_rng(SEED).permutation(neutral)[:FACES]]
    finally:
        extractor.close()
    rows = [values for values, _, view in stills if view.faces]
    mean = [round(float(value), 5) for value in np.mean(rows, axis=0)]
    REST.write_bytes(msgspec.json.encode(Rest(SPEC.extractor, 0.0, mean)) + b"\n")
    print(f"{len(rows)} faces in {REST}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
