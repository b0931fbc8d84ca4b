"""Rebuild `models/voice/moods.json` after a change of the voice encoder: how voices change with emotions.

    python scripts/moods.py DATASET...

Datasets of `mien extract` with speech of several emotions. Only their training parts are read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mien.models.data.dataset_files import read_dataset
from mien.models.data.speakers import Speakers
from mien.models.voice.moods import MOODS, encoded_moods


def main(paths: list[Path]) -> None:
    """Learn the directions from the speakers of some datasets and write them."""
    samples = [sample for path in paths for sample in read_dataset(path).split("train")]
    MOODS.write_bytes(encoded_moods(Speakers(samples).moods()))
    print(f"wrote {MOODS}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
