"""Compare the ways through mien clip by clip: in full, at the clip's own pace, `mien predict` and `mien extract`.

    python scripts/compare_ways.py CLIP... [--allowed 0.05]

Prints for each clip how many words were committed, whether all ways have the same ones, by how much a probability
differs at most on a grid of a quarter of a second, and how long after their sound messages with words were sent at the
clip's own pace. Exits with 1 where anything differs. On a machine that is too busy for the pace of a clip, frames and
sound are dropped there, and then it may.
"""

from __future__ import annotations

import argparse
import bisect
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import EMOTIONS, Prediction
from mien.models.data.dataset_files import read_dataset
from mien.stream.recording import channels
from mien.stream.recording.reader import open_recording

GRID_S = 0.25
Probabilities = Mapping[str, float] | None


@dataclass(frozen=True)
class Run:
    """Predictions of a session by their instant, ns from the clip's begin, and what its messages of words took, ms.

    `end_ns` is the end of the sound. A session that is late may predict beyond it.
    """

    at: dict[int, Prediction]
    lags_ms: list[float]
    end_ns: int

    def words(self) -> str:
        """What was committed and is certain, in order."""
        words = {word.t_start_ns: word for each in self.at.values() for word in each.words if word.committed}
        return " ".join(words[t_ns].text.strip() for t_ns in sorted(words) if not words[t_ns].uncertain)


def mien(*arguments: str) -> str:
    """Standard output of a command."""
    line = [sys.executable, "-m", "mien", *arguments]
    ran = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode:
        raise SystemExit(f"mien {' '.join(arguments)}: {ran.stderr.strip()}")
    return ran.stdout


def run(clip: Path, port: int, work: Path, end_ns: int | None, *options: str) -> Run:
    """A session that plays the clip, the sound of which ends at `end_ns`, or as the session says."""
    path = work / "run.mcap"
    path.unlink(missing_ok=True)
    mien("run", "--clip", str(clip), "--quiet", "--port", str(port), "--record", str(path), *options)
    recording = open_recording(path)
    predictions = [entry.prediction() for entry in recording.entries({channels.PREDICTION})]
    lags, sound_ns = [], 0
    for entry in recording.entries({channels.FEATURES + "text"}):
        header, _ = entry.features()
        lags.append((header.stamps["sent"] - header.t_end_ns) / NS_PER_MS)
        sound_ns = max(sound_ns, header.t_end_ns)
    begin_ns = 0 if end_ns is None else sound_ns - end_ns
    # The last prediction has seen the whole clip, and may have the instant of the one before.
    return Run({each.t_end_ns - begin_ns: each for each in predictions}, lags[:-1], sound_ns - begin_ns)


def extracted(clip: Path, work: Path) -> str:
    """The words of a clip in a dataset."""
    (folder := work / "clips").mkdir()
    (folder / clip.name).symlink_to(clip.resolve())
    (folder / "labels.csv").write_text(f'file,emotion\n"{clip.name}",neutral\n')
    mien("extract", str(folder), "-o", str(work / "dataset"), "--jobs", "1")
    return " ".join(sample.labels.text or "" for sample in read_dataset(work / "dataset").samples)


def apart(one: Probabilities, other: Probabilities) -> float:
    """By how much a probability differs at most; 1 where only one of them says anything."""
    if not one or not other:
        return float(bool(one) != bool(other))
    return max(abs(one[emotion] - other[emotion]) for emotion in EMOTIONS)


def paced_apart(full: Run, paced: Run) -> tuple[float, float]:
    """By how much two sessions differ at most, and at what second, at their common instants next to the grid."""
    common = sorted(full.at.keys() & paced.at.keys())
    if len(common) < len(full.at) / 2:
        return 1.0, 0.0  # most frames were dropped: nothing to compare
    found = []
    for step in range(int(common[-1] / NS_PER_S / GRID_S) + 1):
        at = max(bisect.bisect(common, round(step * GRID_S * NS_PER_S)) - 1, 0)
        found.append((apart(full.at[common[at]].emotions, paced.at[common[at]].emotions), common[at] / NS_PER_S))
    return max(found)


def predicted_apart(full: Run, rows: list[dict[str, object]]) -> tuple[float, float, int]:
    """By how much `mien predict` differs from the instant before or after, at what second, and how often in words."""
    instants = sorted(full.at)
    found, other_words = [], 0
    for row in rows:
        t_s = float(str(row["t_s"]))
        at = bisect.bisect(instants, round(t_s * NS_PER_S))
        near = [full.at[instants[k]] for k in (at - 1, at) if 0 <= k < len(instants)]
        probabilities = {name: float(str(row[name])) for name in EMOTIONS} if "neutral" in row else None
        found.append((min(apart(each.emotions, probabilities) for each in near), t_s))
        shown = {f"{each.transcript.committed} {each.transcript.tentative}".strip() for each in near}
        other_words += str(row["words"]) not in shown
    return *max(found), other_words


def spread(lags_ms: list[float]) -> str:
    """Median, 95 % and the longest."""
    return " / ".join(f"{np.percentile(lags_ms, p):.0f}" for p in (50, 95, 100)) if lags_ms else ""


def main() -> None:
    """Compare, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--allowed", type=float, default=0.05)
    parser.add_argument("--port", type=int, default=27_300)
    arguments = parser.parse_args()
    columns = "clip", "words", "paced", "extract", "predict", "paced differs by", "predict by", "lag p50/p95/max ms"
    table, failed, lags_ms = Table(*columns), False, []
    for number, clip in enumerate(arguments.clips):
        with tempfile.TemporaryDirectory() as folder:
            work, port = Path(folder), arguments.port + 10 * number
            full = run(clip, port, work, None, "--fast")
            paced = run(clip, port, work, full.end_ns)
            rows = mien("predict", str(clip), "--hop", str(GRID_S), "--json").splitlines()
            words, dataset = full.words(), extracted(clip, work)
            by, at_s = paced_apart(full, paced)
            predict_by, predict_s, other = predicted_apart(full, [json.loads(row) for row in rows])
        same = paced.words() == words, dataset == words, other == 0
        failed = failed or not all(same) or max(by, predict_by) > arguments.allowed
        lags_ms += paced.lags_ms
        differs = f"{by:.3f} at {at_s:.2f} s", f"{predict_by:.3f} at {predict_s:.2f} s"
        verdicts = ("same" if each else "OTHER" for each in same)
        cells = clip.name, str(len(words.split())), *verdicts, *differs, spread(paced.lags_ms)
        table.add_row(*cells)
        print(*cells, sep=" | ", file=sys.stderr, flush=True)
    table.add_row("all", *[""] * 6, spread(lags_ms))
    Console(width=150).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
