"""How this mien was installed: from a checkout, a wheel or an index, and at which commit."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parent / "sample.mp4"  # the clip shipped with mien


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, for instance `pip install -e "/home/me/mien[live]"`."""
    origin = _origin()
    checkout = checkout_folder()
    if checkout is not None:
        pins = checkout / "constraints.txt"
        pinned = f'-c "{pins}" ' if pins.is_file() else ""
        return f'pip install {pinned}-e "{checkout}[{extra}]"'
    if origin.get("url"):
        vcs = origin.get("vcs_info", {}).get("vcs")
        return f'pip install "mien[{extra}] @ {f"{vcs}+" if vcs else ""}{origin["url"]}"'
    return f'pip install "mien[{extra}]"'


def checkout_folder() -> Path | None:
    """The checkout that this mien runs from; None if it does not run from one."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() and (folder / "src" / "mien").is_dir() else None


def commit() -> str | None:
    """The checkout's commit, with "+" if there are local changes, or the one that pip installed; None if unknown."""
    folder = checkout_folder()
    if folder is None:
        known = _origin().get("vcs_info", {}).get("commit_id")
        return str(known)[:9] if known else None
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages, leaving out those that are not installed."""
    from importlib import metadata

    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@functools.cache
def _origin() -> dict[str, Any]:
    """Where pip installed mien from (PEP 610); empty for an index."""
    from importlib import metadata

    try:
        noted: dict[str, Any] = json.loads(metadata.distribution("mien").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        return {}
    return noted
