"""Memory of every process of a session on its first run, when networks are compiled, and on a later run.

    python scripts/first_run_memory.py [--seconds 10]

Both run the built-in sample with an empty cache of engines that is removed afterwards. Exits with 1 where a process of
the first run takes more than 10 % beyond that of the later one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
from rich.console import Console

from mien.cli._terminal import print_rows
from mien.install import SAMPLE
from mien.stream.bus.ports import free_port

ALLOWED = 1.10


def peaks(cache: Path, seconds: float, folder: Path, name: str) -> dict[str, float]:
    """The highest memory in MiB of each process of a session, once it is ready."""
    summary = folder / f"{name}.json"
    assets = platformdirs.user_cache_path("mien") / "assets"
    config = folder / "mien.toml"
    config.write_text(f"[assets]\ncache = {json.dumps(str(assets))}\n", encoding="utf-8")
    run = [
        sys.executable,
        "-P",
        "-m",
        "mien",
        "run",
        "--config",
        str(config),
        "--clip",
        str(SAMPLE),
        "--loop",
        "--quiet",
    ]
    run += ["--seconds", str(seconds), "--port", str(min(free_port(), 65_000)), "--session", f"memory-{os.getpid()}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    subprocess.run([*run, "--summary", str(summary)], env=environment, stdout=subprocess.DEVNULL, check=True)
    return {worker: made["rss_mb"] for worker, made in json.loads(summary.read_text())["processes"].items()}


def main() -> None:
    """Run twice, and print both side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mien-first-run-") as name:
        folder = Path(name)
        first, later = (peaks(folder / "cache", given.seconds, folder, run) for run in ("first", "later"))
    rows = [(worker, f"{first[worker]:.0f}", f"{mb:.0f}", f"{first[worker] / mb:.2f}") for worker, mb in later.items()]
    print_rows(Console(), ("MiB", ">first run", ">later run", ">ratio"), rows)
    sys.exit(any(first[worker] > ALLOWED * mb for worker, mb in later.items()))


if __name__ == "__main__":
    main()
