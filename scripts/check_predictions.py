"""Check that a file holds the predictions of one run, as `mien demo --json` prints them.

Exits with 1 and the reason if there are too few, if one is missing in between, or if all abstain.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import msgspec

from mien.messages import Prediction


def main() -> None:
    """Read, check, and print one line of what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--at-least", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    lines = arguments.file.read_bytes().splitlines()
    predictions = [msgspec.json.decode(line, type=Prediction) for line in lines]
    if len(predictions) < arguments.at_least:
        sys.exit(f"{len(predictions)} predictions, expected at least {arguments.at_least}")
    if any(a.run == b.run and a.seq >= b.seq for a, b in itertools.pairwise(predictions)):
        sys.exit("sequence numbers do not rise")
    # Restarted inference counts from zero again; the log should show the restart.
    runs = len({prediction.run for prediction in predictions})
    spoken = [prediction for prediction in predictions if prediction.sentiment is not None]
    if 2 * len(spoken) < len(predictions):
        sys.exit(f"only {len(spoken)} of {len(predictions)} predictions say anything")
    span_s = (predictions[-1].t_end_ns - predictions[0].t_end_ns) / 1e9
    emotions = sorted({prediction.top_emotion or "" for prediction in spoken})
    print(
        f"{len(predictions)} predictions over {span_s:.1f} s in {runs} run(s), {len(spoken)} with evidence: "
        f"{', '.join(emotions)}"
    )


if __name__ == "__main__":
    main()
