"""Check that predictions of the built-in sample move the right way between its parts.

    mien run --clip src/mien/sample.mp4 --fast --json > predictions.jsonl
    python scripts/check_sample.py predictions.jsonl

A part is judged by its last seconds, when the window holds little else. Prints a line a part; exits with 1 and says why
if the top emotion of a part is another than its own most of that time, if the sentiment's sign is wrong, or if it does
not rise to the happy part and fall to the sad one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import mien
from mien.messages import Prediction

UNIX_TIMES_NS = 1_000_000_000_000_000_000  # later times are a clock's, earlier ones count from the clip's start


def main() -> None:
    """Read, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON lines of `mien run` or `mien demo`")
    parser.add_argument("--last", type=float, default=1.5, metavar="SECONDS", help="end of a part that is judged")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="judge so much later")
    arguments = parser.parse_args()
    manifest: dict[str, Any] = json.loads((Path(mien.__file__).parent / "sample.json").read_text(encoding="utf-8"))
    predictions = [msgspec.json.decode(line, type=Prediction) for line in arguments.file.read_bytes().splitlines()]
    predictions = [prediction for prediction in predictions if prediction.sentiment is not None]
    if not predictions:
        sys.exit("no prediction says anything")
    first_ns = predictions[0].t_end_ns
    start_ns = first_ns if first_ns > UNIX_TIMES_NS else 0
    times_s = np.array([(prediction.t_end_ns - start_ns) / 1e9 for prediction in predictions])
    faults, sentiment = [], {}
    for part in manifest["parts"]:
        end_s = part["end_s"] + arguments.delay
        inside = np.flatnonzero((times_s >= end_s - arguments.last) & (times_s < end_s))
        if not len(inside):
            faults.append(f"no prediction at the end of the {part['emotion']} part")
            continue
        chosen = [predictions[index] for index in inside]
        tops = Counter(prediction.top_emotion for prediction in chosen)
        mean = float(np.mean([prediction.sentiment for prediction in chosen]))
        gates = {name: float(np.mean([prediction.gates[name] for prediction in chosen])) for name in chosen[0].gates}
        sentiment[part["emotion"]] = mean
        seen = ", ".join(f"{name} {count / len(chosen):.0%}" for name, count in tops.most_common(3))
        shares = " ".join(f"{name} {share:.2f}" for name, share in gates.items())
        print(f"{part['emotion']:<8} sentiment {mean:+.2f}   {seen:<36} {shares}   {chosen[-1].transcript.committed}")
        if tops.most_common(1)[0][0] != part["emotion"]:
            faults.append(f"the {part['emotion']} part looks {tops.most_common(1)[0][0]}")
        if part["sentiment_sign"] * mean < 0 or (part["sentiment_sign"] == 0 and abs(mean) > 1):
            faults.append(f"sentiment {mean:+.2f} in the {part['emotion']} part")
    if {"neutral", "happy", "sad"} <= sentiment.keys() and not (
        sentiment["happy"] > sentiment["neutral"] > sentiment["sad"]
    ):
        faults.append("sentiment does not rise from neutral to happy and fall to sad")
    if faults:
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
