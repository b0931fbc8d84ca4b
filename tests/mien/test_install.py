"""How this mien was installed, and the advice given for it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mien import install

ROOT = Path(__file__).resolve().parents[2]


def test_extra_is_added_to_the_existing_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    if install.checkout_folder() is not None:
        assert install.install_command("live") == f'pip install -c "{ROOT / "constraints.txt"}" -e "{ROOT}[live]"'
    monkeypatch.setattr(install, "checkout_folder", lambda: None)
    for origin, command in (
        ({}, 'pip install "mien[live]"'),
        ({"url": "file:///tmp/mien-1.whl"}, 'pip install "mien[live] @ file:///tmp/mien-1.whl"'),
        (
            {"url": "https://host/mien.git", "vcs_info": {"vcs": "git", "commit_id": "12ab34cd56ef"}},
            'pip install "mien[live] @ git+https://host/mien.git"',
        ),
    ):
        monkeypatch.setattr(install, "_origin", lambda origin=origin: origin)
        assert install.install_command("live") == command
    assert install.commit() == "12ab34cd5"


def test_commit_is_that_of_the_checkout() -> None:
    if install.checkout_folder() is None:
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (install.commit() or "").rstrip("+") == head.stdout.strip()


def test_only_one_opencv_is_required() -> None:
    """opencv-python and opencv-contrib-python share a folder: two of them are two versions of one library."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = {Requirement(text).name for texts in extras.values() for text in texts}
    expected = required - {"mien"}
    known = {Requirement(line).name for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for name in expected | known:
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        required |= {r.name for r in map(Requirement, needed) if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert {name for name in required if re.match("opencv", name)} == {"opencv-contrib-python"}


def test_examples_have_the_licence_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert json.loads((ROOT / "examples" / "package.json").read_text())["license"] == project


@pytest.mark.parametrize(
    ("given", "gpu", "suggested"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"PIP_INDEX_URL": "https://mirror/simple"}, False, False),
    ],
)
def test_the_small_torch_is_suggested(tmp_path: Path, given: dict[str, str], gpu: bool, suggested: bool) -> None:
    """The part of scripts/setup.sh that decides, run alone, on a machine with and without a GPU's driver."""
    script = (ROOT / "scripts" / "setup.sh").read_text()
    function = script[script.index("needs_no_cuda() {") : script.index("suggest_cpu_torch() {")]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"uname": "echo Linux", "python": "exit 0", "grep": '/bin/grep "$@"'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    if gpu:
        (tools / "nvidia-smi").write_text("#!/bin/sh\n")
        (tools / "nvidia-smi").chmod(0o755)
    elif Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    ran = subprocess.run(["/bin/sh", "-c", f"{function}\nneeds_no_cuda python"], env={"PATH": str(tools)} | given)
    assert (ran.returncode == 0) is suggested
