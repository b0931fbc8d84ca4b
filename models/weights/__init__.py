"""Sets of weights: the one shipped with mien, and those made by `mien train`. Lightweight: no torch, no safetensors.

A set is a folder of three files: CM-MSF, the text encoder's adapters, and the face CNN. CM-MSF is trained on rows of
those two encoders, so the three belong together. `MODEL_CARD.md` describes how the shipped set was made and what it
may be used for; `SHA256SUMS` lists its files.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mien.errors import CheckpointError
from mien.files import sha256_of, write_file

FUSION, TEXT, FACE = "cmmsf.safetensors", "text.safetensors", "face.safetensors"
FILES = {"fusion": FUSION, "text": TEXT, "face": FACE}
SHIPPED_FOLDER = Path(__file__).parent
REST = SHIPPED_FOLDER / "rest.json"  # resting faces in general, for the shipped face CNN
AGAIN = "copy the folder of `mien train` again, or train again; `mien weights --restore` restores shipped files"
_SUMS = SHIPPED_FOLDER / "SHA256SUMS"


@dataclass(frozen=True)
class WeightSet:
    """Paths of the weights in use.

    Attributes:
        fusion: CM-MSF. text: adapters of the text encoder. face: the face CNN. The files may be missing.
    """

    fusion: Path = SHIPPED_FOLDER / FUSION
    text: Path = SHIPPED_FOLDER / TEXT
    face: Path = SHIPPED_FOLDER / FACE


SHIPPED = WeightSet()


def weight_set(choice: str | Path = "") -> WeightSet:
    """The weights that `inference.checkpoint` or `--checkpoint` names.

    Args:
        choice: empty for the shipped set; a folder, with shipped encoders for any it lacks; or a CM-MSF file, which is
            used with the shipped encoders.

    Raises:
        CheckpointError: a file's name in the folder is that of something else, such as a folder or a broken link.
    """
    if not choice:
        return SHIPPED
    path = Path(choice).expanduser()
    if not os.path.isdir(path):
        return WeightSet(fusion=path)
    found = {name: os.path.lexists(path / name) for name in FILES.values()}
    for name, exists in found.items():
        if exists and not os.path.isfile(path / name):
            raise CheckpointError(f"{path / name} is not a file; {AGAIN}")
    text, face = (path / name if found[name] else SHIPPED_FOLDER / name for name in (TEXT, FACE))
    return WeightSet(path / FUSION, text, face)


def encoder_digest(path: Path) -> str:
    """First 8 hex digits of the SHA-256 of an encoder's weights.

    Raises:
        CheckpointError: the file cannot be read, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return sha256_of(path)[:8]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}; {AGAIN}") from error


def shipped_digests() -> dict[str, str]:
    """SHA-256 of each file of the shipped set, by file name."""
    lines = (line.split(maxsplit=1) for line in _SUMS.read_text(encoding="ascii").splitlines() if line.strip())
    return {name.strip().lstrip("*"): digest for digest, name in lines}


def is_shipped(path: Path) -> bool:
    """Whether a file is identical to the shipped one of its name."""
    try:
        return sha256_of(path) == shipped_digests().get(path.name)
    except OSError:
        return False


def restore_shipped() -> list[Path]:
    """Restore missing or modified files of the shipped set from the checkout's git history.

    Returns:
        The restored files.

    Raises:
        CheckpointError: this is not a checkout of mien, or its commit has other files; the message says what to do.
    """
    changed = [SHIPPED_FOLDER / name for name in shipped_digests() if not is_shipped(SHIPPED_FOLDER / name)]
    contents = {path: _committed(path) for path in changed}
    for path, content in contents.items():
        write_file(path, content, error=CheckpointError)
    return changed


def _committed(path: Path) -> bytes:
    """The last commit's version of `path`, if it is the shipped one."""
    again = "install mien again from where it came (pip install --force-reinstall --no-deps ...)"
    try:
        # In a folder inside another repository git finds no such file, and we end in the error below.
        shown = subprocess.run(
            ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"], capture_output=True, check=False
        )
    except OSError as error:
        raise CheckpointError(f"{path} is not the shipped file, and git is missing to restore it; {again}") from error
    if shown.returncode:
        raise CheckpointError(f"{path} is not the shipped file, and this is not a checkout to restore it from; {again}")
    if hashlib.sha256(shown.stdout).hexdigest() != shipped_digests().get(path.name):
        raise CheckpointError(
            f"neither {path} nor the one in the checkout's last commit is what {_SUMS.name} lists; check out a commit "
            "whose weights were not changed"
        )
    return shown.stdout
