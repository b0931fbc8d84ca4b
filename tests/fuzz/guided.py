"""Coverage-guided fuzzing of one target, or of all of them with their figures: `make fuzz`.

atheris (libFuzzer for Python) keeps inputs that reach new branches of mien and goes on from these. Each target runs in
a process of its own, from the corpus in this folder; a crash, a hang of ten seconds or memory beyond a limit ends it.

    python -m tests.fuzz.guided [--cases 2000000] [--target NAME] [--keep]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
# Shares of all cases: network input gets most of them, files are slow.
SHARES = {
    "features": 24, "prediction": 16, "status": 14, "about": 10, "cue": 10, "preview": 6, "sound": 6, "clock": 5,
    "edges": 3, "key": 2, "config": 2, "mmsa": 1.5, "recording": 0.6, "checkpoint": 0.6,
}  # fmt: skip
_RSS_LIMIT_MB = 1024
_LEAK_MB = 48  # grown in the last three quarters of a run; libFuzzer itself takes some 20 bytes a case
_KEPT_BYTES = 2048  # larger inputs are not kept in the repository, however new
_KEPT = 24


@dataclass(frozen=True)
class Outcome:
    """What a run of one target came to."""

    name: str
    cases: int
    seconds: float
    grown_mb: float
    failure: str


def fuzz(name: str, arguments: list[str], cases: int) -> None:
    """Fuzz one target in this process; never returns."""
    import atheris

    with atheris.instrument_imports(include=["mien", "mcap"]):
        from tests.fuzz.mutation import mutate
        from tests.fuzz.targets import TARGETS
    import psutil

    process = psutil.Process()
    seen, settled_mb = 0, 0.0

    def one(data: bytes) -> None:
        nonlocal seen, settled_mb
        seen += 1
        if seen == max(cases // 4, 1):
            settled_mb = process.memory_info().rss / 2**20
        elif seen == cases:
            print(f"grown {process.memory_info().rss / 2**20 - settled_mb:.1f} MB", file=sys.stderr, flush=True)
        TARGETS[name](data)

    def damage(data: bytes, max_size: int, seed: int) -> bytes:
        # Half of the time by fields, which bytes alone would seldom hit.
        chance = random.Random(seed)
        return mutate(data, chance)[:max_size] if chance.random() < 0.5 else bytes(atheris.Mutate(data, max_size))

    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=damage)
    atheris.Fuzz()


def run(name: str, cases: int, keep: bool) -> Outcome:
    """Fuzz one target in a process of its own."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"mien-fuzz-{name}-") as folder:
        new, found = Path(folder) / "new", Path(folder) / "found"
        new.mkdir()
        found.mkdir()
        options = [
            f"-runs={cases}", "-timeout=10", f"-rss_limit_mb={_RSS_LIMIT_MB}", "-print_final_stats=1", "-seed=1",
            f"-max_len={32768 if name == 'recording' else 4096}", f"-artifact_prefix={found}/",
        ]  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", "--inside", name, "--cases", str(cases), "--",
             *options, str(new), str(CORPUS / name)],
            capture_output=True, text=True, errors="replace", check=False, env=os.environ | {"TMPDIR": folder},
        )  # fmt: skip
        done = re.search(r"stat::number_of_executed_units:\s*(\d+)", ran.stderr)
        grown = re.search(r"grown (-?[\d.]+) MB", ran.stderr)
        failure = ""
        for path in found.iterdir():
            kept = Path(tempfile.gettempdir()) / f"mien-fuzz-{name}-{path.name}"
            shutil.copy(path, kept)
            failure = f"{kept}: " + " | ".join(ran.stderr.strip().splitlines()[-12:])[-1500:]
        if not failure and ran.returncode:
            failure = ran.stderr[-1500:]
        if keep and not failure:
            _keep(name, new)
    return Outcome(
        name,
        int(done.group(1)) if done else 0,
        time.monotonic() - began_s,
        float(grown.group(1)) if grown else 0.0,
        failure,
    )


def _keep(name: str, new: Path) -> None:
    """Put small inputs that reached something new into the corpus, few of each size."""
    sizes = {path: path.stat().st_size for path in new.iterdir()}
    small = sorted((path for path, size in sizes.items() if size <= _KEPT_BYTES), key=sizes.__getitem__)
    for path in small[:: max(len(small) // _KEPT, 1)][:_KEPT]:
        shutil.copy(path, CORPUS / name / path.name[:16])


def main() -> int:
    """Fuzz, and print cases and time."""
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of everything that reads foreign bytes.")
    parser.add_argument("--cases", type=int, default=2_100_000, help="of all targets together")
    parser.add_argument("--target", choices=SHARES, action="append", help="this one alone, with all cases")
    parser.add_argument("--keep", action="store_true", help="add what reached something new to the corpus")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        fuzz(given.inside, given.arguments, given.cases)
    names = given.target or list(SHARES)
    total = sum(SHARES[name] for name in names)
    began_s = time.monotonic()
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        runs = [pool.submit(run, name, round(given.cases * SHARES[name] / total), given.keep) for name in names]
        outcomes = []
        for future in runs:
            outcomes.append(outcome := future.result())
            verdict = outcome.failure or ("LEAK" if outcome.grown_mb > _LEAK_MB else "ok")
            figures = f"{outcome.cases:>9,} cases  {outcome.seconds:6.0f} s  memory {outcome.grown_mb:+6.1f} MB"
            print(f"{outcome.name:<12} {figures}  {verdict}", flush=True)
    cases = sum(outcome.cases for outcome in outcomes)
    print(f"{'all':<12} {cases:>9,} cases  {time.monotonic() - began_s:6.0f} s")
    failed = any(outcome.failure or outcome.grown_mb > _LEAK_MB for outcome in outcomes)
    return 1 if failed or cases < 0.99 * given.cases else 0


if __name__ == "__main__":
    sys.exit(main())
