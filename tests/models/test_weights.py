"""The sets of weights: the one that ships, those of `mien train`, and how one is put in the other's place."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mien.models.weights as weights
from mien.cli import app
from mien.errors import CheckpointError
from mien.files import sha256_of
from mien.install import SAMPLE
from mien.models.weights import (
    FACE,
    FILES,
    FUSION,
    SHIPPED,
    SHIPPED_FOLDER,
    TEXT,
    is_shipped,
    restore_shipped,
    weight_set,
)


def test_list_matches_the_shipped_files() -> None:
    listed = weights.shipped_digests()
    found = {p.name: sha256_of(p) for pattern in ("*.safetensors", "*.json") for p in SHIPPED_FOLDER.glob(pattern)}
    assert listed == found, "new default weights? cd models/weights && sha256sum *.safetensors *.json > SHA256SUMS"


def test_choice_is_none_a_folder_or_a_file(tmp_path: Path) -> None:
    assert weight_set() == SHIPPED
    assert weight_set(tmp_path / "a.safetensors") == weights.WeightSet(fusion=tmp_path / "a.safetensors")
    (tmp_path / TEXT).write_bytes(b"text")
    chosen = weight_set(str(tmp_path))
    assert (chosen.fusion, chosen.text, chosen.face) == (tmp_path / FUSION, tmp_path / TEXT, SHIPPED.face)


def test_encoders_of_a_folder_have_their_own_extractor_names(tmp_path: Path) -> None:
    from mien.clock import Clock
    from mien.config import load_config
    from mien.models.checkpoint import check_extractors, load_checkpoint
    from mien.stream.modalities.base import create_modality
    from mien.stream.offline.extractors import live_specs

    for name in (FUSION, FACE, TEXT):
        shutil.copy(weights.SHIPPED_FOLDER / name, tmp_path)
    assert live_specs(weights=weight_set(tmp_path)) == live_specs()
    for name in (FACE, TEXT):
        weights_of_others = bytearray((tmp_path / name).read_bytes())
        weights_of_others[-1] ^= 1
        (tmp_path / name).write_bytes(weights_of_others)
    own = live_specs(weights=weight_set(tmp_path))
    assert own["audio"] == live_specs()["audio"]
    assert own["vision"].extractor != live_specs()["vision"].extractor
    assert own["text"].extractor != live_specs()["text"].extractor
    config = load_config(overrides={"inference.checkpoint": str(tmp_path), "video.source": "none"})
    assert create_modality("video", config, Clock()).spec == own["vision"]
    assert create_modality("text", config, Clock()).spec == own["text"]
    with pytest.raises(CheckpointError, match="folder of `mien train`"):
        check_extractors(load_checkpoint(tmp_path), own.values())


@pytest.mark.parametrize("damage", ["folder", "broken link", "cut", "text"])
@pytest.mark.parametrize("name", [FUSION, FACE, TEXT])
def test_a_damaged_file_of_a_folder_is_named_and_not_replaced(tmp_path: Path, name: str, damage: str) -> None:
    for each in FILES.values():
        shutil.copy(weights.SHIPPED_FOLDER / each, tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"no weights")
    result = CliRunner().invoke(app, ["predict", str(SAMPLE), "--checkpoint", str(tmp_path)])
    assert isinstance(result.exception, CheckpointError)
    assert str(path) in str(result.exception)
    assert "copy the folder of `mien train` again" in str(result.exception)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that holds what ships, in place of the installation."""
    folder = tmp_path / "repository" / "weights"
    shutil.copytree(weights.SHIPPED_FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "weights"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(weights, "SHIPPED_FOLDER", folder)
    monkeypatch.setattr(weights, "SHIPPED", weights.WeightSet(folder / FUSION, folder / TEXT, folder / FACE))
    return folder


def test_replaced_weights_are_reported_and_restored(checkout: Path) -> None:
    assert restore_shipped() == []
    (checkout / FUSION).write_bytes(b"of my own")
    (checkout / FACE).unlink()
    (checkout / "rest.json").unlink()
    result = CliRunner().invoke(app, ["weights", "--json"])
    made = json.loads(result.stdout)
    assert result.exit_code == 1  # it is no checkpoint
    assert not made["shipped"]
    assert {what: file["shipped"] for what, file in made["files"].items()} == {
        "fusion": False, "text": True, "face": False
    }  # fmt: skip
    result = CliRunner().invoke(app, ["weights", "--restore"])
    assert result.exit_code == 0, result.output
    assert "restored" in result.stderr
    assert all(is_shipped(checkout / name) for name in (*FILES.values(), "rest.json"))


def test_without_a_checkout_restoring_is_explained(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / FUSION).write_bytes(b"of my own")
    with pytest.raises(CheckpointError, match="install mien again"):
        restore_shipped()
    assert (checkout / FUSION).read_bytes() == b"of my own"


def test_commit_with_other_weights_is_not_the_shipped_one(checkout: Path) -> None:
    (checkout / FUSION).write_bytes(b"of my own")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "commit", "-qam", "mine"], check=True)
    with pytest.raises(CheckpointError, match="SHA256SUMS"):
        restore_shipped()
