"""The house: who may import whom, what stays light, and that every package is packed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Package -> its folder, from the bottom up: a file imports from its own floor and from those before it.
FLOORS = {
    "mien": ROOT / "src" / "mien",
    "mien.models.weights": ROOT / "models" / "weights",
    "mien.models.voice": ROOT / "models" / "voice",
    "mien.models.text": ROOT / "models" / "text",
    "mien.models": ROOT / "models",
    "mien.models.data": ROOT / "models" / "data",
    "mien.models.evaluation": ROOT / "models" / "evaluation",
    "mien.models.training": ROOT / "models" / "training",
    "mien.engines": ROOT / "engines",
    "mien.engines.tensorrt": ROOT / "engines" / "tensorrt",
    "mien.stream": ROOT / "stream",
    "mien.cli": ROOT / "src" / "mien" / "cli",
}
# What a machine that only subscribes does not have; zmq it has, but loads with the first subscription.
HEAVY = [
    "torch",
    "cv2",
    "mediapipe",
    "faster_whisper",
    "ctranslate2",
    "onnx",
    "onnxruntime",
    "openvino",
    "transformers",
    "tokenizers",
    "librosa",
    "scipy",
    "sklearn",
    "sounddevice",
    "av",
    "matplotlib",
    "nicegui",
    "zmq",
]


def floor_of(module: str) -> str:
    """The floor that an imported module belongs to."""
    return max((name for name in FLOORS if f"{module}.".startswith(f"{name}.")), key=len)


def files_of(floor: str) -> list[Path]:
    others = [folder for name, folder in FLOORS.items() if name != floor and folder.is_relative_to(FLOORS[floor])]
    return [path for path in FLOORS[floor].rglob("*.py") if not any(path.is_relative_to(other) for other in others)]


def mien_imports(path: Path) -> set[str]:
    """What a file imports of mien, wherever in it, at run time or for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            # `from mien import cli` names a floor only together with what it imports.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "mien" or name.startswith("mien.")}


# The public functions of the package's face live above; `__main__` is the door of the command line.
DOORS = {("__init__.py", "mien.stream"), ("__main__.py", "mien.cli")}


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_one_way(floor: str) -> None:
    order = list(FLOORS)
    files = files_of(floor)
    assert files
    for path in files:
        above = {name for name in mien_imports(path) if order.index(floor_of(name)) > order.index(floor)}
        if path.parent == FLOORS["mien"]:
            above = {name for name in above if (path.name, floor_of(name)) not in DOORS}
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}, which stands above it"


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_are_imported_by_their_full_name(floor: str) -> None:
    for path in files_of(floor):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bare = {name.split(".")[0] for name in names} & {"models", "engines", "stream"}
            assert not bare, f"{path.relative_to(ROOT)} imports {bare} as if it were installed under that name"


@pytest.mark.parametrize("room", ["mien.stream.sources"])
def test_a_room_has_no_circle(room: str) -> None:
    folder = FLOORS["mien.stream"] / room.rsplit(".", 1)[1]
    inside = {path.stem: path for path in folder.glob("*.py")}
    needs = {
        name: {n for n in inside if any(f"{i}.".startswith(f"{room}.{n}.") for i in mien_imports(path))}
        for name, path in inside.items()
    }
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"{', '.join(sorted(needs))} import each other in a circle"


@pytest.mark.parametrize(
    "code",
    [
        "import mien",
        "import sys; sys.argv = ['mien', '--help']; import mien.cli; mien.cli.app(standalone_mode=False)",
        "import sys; sys.argv = ['mien', 'run', '--help']; import mien.cli; mien.cli.app(standalone_mode=False)",
        "import mien.assets",
    ],
    ids=["import mien", "mien --help", "mien run --help", "import mien.assets"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    report = f"{code}\nimport json, sys; print(); print(json.dumps(sorted(m for m in {HEAVY} if m in sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == []


def test_a_subscriber_needs_the_base_install_only() -> None:
    code = f"import mien, json, sys; mien.subscribe; print(json.dumps(sorted(m for m in {HEAVY} if m in sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == ["zmq"]


def test_every_package_is_packed() -> None:
    packed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = set()
    for name, folder in FLOORS.items():
        for path in folder.rglob("__init__.py"):
            inner = path.parent.relative_to(folder).parts
            present.add(".".join((name, *inner)))
    assert packed == present
