"""Architecture: who may import whom, how long a file may be, what stays lightweight, and what is packaged."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Package -> its folder, from the bottom up: a file imports from its own layer and from those before it.
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
# The same within a package: a sub-package imports from itself and from those before it.
ROOMS = {
    "mien.stream": [
        "sources",
        "speech",
        "bus",
        "monitoring",
        "processes",
        "modalities",
        "capture",
        "inference",
        "direct",
        "recording",
        "features",
        "dashboard",
        "bridges",
        "offline",
        "bench",
        "fleet",
    ],
}
# Modules that a subscriber-only machine lacks; it has zmq, but loads it with the first subscription.
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
    "ray",
    "zmq",
]


def floor_of(module: str) -> str:
    """The layer of an imported module."""
    return max((name for name in FLOORS if f"{module}.".startswith(f"{name}.")), key=len)


def files_of(floor: str) -> list[Path]:
    others = [folder for name, folder in FLOORS.items() if name != floor and folder.is_relative_to(FLOORS[floor])]
    return [path for path in FLOORS[floor].rglob("*.py") if not any(path.is_relative_to(other) for other in others)]


@functools.cache
def mien_imports(path: Path, *, types: bool = True) -> frozenset[str]:
    """What a file imports of mien, anywhere in it; at run time, or also for types."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECK" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            # `from mien import cli` names a floor only together with what it imports.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name == "mien" or name.startswith("mien."))


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


def test_no_file_is_too_long() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for floor in FLOORS for path in files_of(floor)}
    assert {path.relative_to(ROOT): count for path, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_are_imported_by_their_full_name(floor: str) -> None:
    for path in files_of(floor):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bare = {name.split(".")[0] for name in names} & {"models", "engines", "stream"}
            assert not bare, f"{path.relative_to(ROOT)} imports {bare} as if it were installed under that name"


def rooms_of(floor: str) -> list[str]:
    return [path.parent.name for path in sorted(FLOORS[floor].glob("*/__init__.py"))]


@pytest.mark.parametrize("floor", ROOMS)
def test_subpackages_import_one_way(floor: str) -> None:
    order = ROOMS[floor]
    assert sorted(order) == rooms_of(floor), "name each room in ROOMS and in CONTRIBUTING.md"
    for path in files_of(floor):
        own = path.relative_to(FLOORS[floor]).parts[0]
        inside = {name.split(".")[2] for name in mien_imports(path) if name.startswith(f"{floor}.")}
        above = {room for room in inside if order.index(room) > order.index(own)}
        assert not above, f"{path.relative_to(ROOT)} imports from {', '.join(sorted(above))}, which stands above it"


@pytest.mark.parametrize("floor", ROOMS)
def test_contributing_states_the_order(floor: str) -> None:
    entry = " <- ".join(f"`{room}`" for room in ROOMS[floor])
    assert entry in " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("room", [f"{floor}.{room}" for floor in ("mien.models", *ROOMS) for room in rooms_of(floor)])
def test_packages_have_no_import_cycles(room: str) -> None:
    floor, name = room.rsplit(".", 1)
    files = {path.stem: path for path in (FLOORS[floor] / name).glob("*.py")}
    needs = {
        stem: {n for n in files if any(f"{i}.".startswith(f"{room}.{n}.") for i in mien_imports(path, types=False))}
        for stem, path in files.items()
    }
    while free := [stem for stem, others in needs.items() if not others & needs.keys()]:
        for stem in free:
            del needs[stem]
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


def test_folders_have_few_imports_between_them() -> None:
    """Edges of the import graph between folders, each counted once."""
    rooms = [path.parent for folder in FLOORS.values() for path in folder.rglob("__init__.py")]
    names = {room_name(room): room for room in rooms}
    arrows = set()
    for room in rooms:
        for path in room.glob("*.py"):
            for name in mien_imports(path):
                while name not in names:
                    name = name.rpartition(".")[0]
                arrows.add((room, names[name]))
    assert len({(a, b) for a, b in arrows if a != b}) <= 150


def room_name(folder: Path) -> str:
    floor, top = max(((n, f) for n, f in FLOORS.items() if folder.is_relative_to(f)), key=lambda each: len(each[0]))
    return ".".join((floor, *folder.relative_to(top).parts))


def test_files_named_in_documents_exist() -> None:
    for document in (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "README.md", *ROOT.glob("docs/*.md")):
        text = document.read_text("utf-8")
        for name in re.findall(r"`((?:src|models|engines|stream|tests|configs)/[a-z_/]+\.\w+)`", text):
            assert (ROOT / name).exists(), f"{document.name} names {name}, which is not there"
    path = (ROOT / "docs" / "how-it-works.md").read_text("utf-8").split("```text")[1].split("```")[0]
    for name in re.findall(r"[a-z_]+/[a-z_]+\.py", path):
        assert (ROOT / name).exists() or (ROOT / "stream" / name).exists(), f"the path of a frame names {name}"


def test_every_package_is_packed() -> None:
    packed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = set()
    for name, folder in FLOORS.items():
        for path in folder.rglob("__init__.py"):
            inner = path.parent.relative_to(folder).parts
            present.add(".".join((name, *inner)))
    assert packed == present
