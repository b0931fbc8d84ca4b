"""The documentation: its shell blocks name commands and options that exist, blocks marked `<!-- run -->` run as they
are written, and the site builds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from mien.cli import app
from mien.install import SAMPLE

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "stream" / "protocol.md",
    ROOT / "models" / "weights" / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("**/*.md")),
]  # fmt: skip
FENCE = re.compile(r"(?:<!-- run(?P<run>[^\n]*?) -->\n)?```sh\n(?P<body>.*?)\n```", re.DOTALL)


def blocks() -> list[tuple[str, bool, tuple[int, ...], str]]:
    """(page and line, whether it is to be run, allowed exit codes, text) of every shell block."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            codes = tuple(int(code) for code in re.findall(r"\d+", match["run"] or ""))
            place = f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}"
            found.append((place, match["run"] is not None, (0, *codes), match["body"]))
    return found


BLOCKS = blocks()
TO_RUN = [block for block in BLOCKS if block[1]]


# What answers each of CONTRIBUTING's ten questions, in the files that it names.
ANSWERS = {
    "stream/modalities/vision.py": "def aligned_crop(",
    "src/mien/messages.py": "class Prediction(",
    "stream/bus/wire.py": "encode_prediction, decode_prediction = ",
    "stream/protocol.md": "## 3. Features",
    "models/training/losses.py": "def fusion_loss(",
    "stream/processes/supervisor.py": "class Supervisor",
    "stream/inference/prediction.py": "def _smooth(",
    "stream/inference/playback.py": "class CompleteSchedule",
    "stream/sources/camera.py": "def _reopen(",
    "stream/recording/writer.py": "class RecordingWriter",
    "src/mien/config.py": "class Config(",
    "stream/bus/curve.py": "class Guard",
}


def test_answers_in_contributing_name_the_right_files() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    answers = re.findall(r"^\| Where .*\? \| (.*) \|$", page, re.MULTILINE)
    assert len(answers) == 10
    assert {name for answer in answers for name in re.findall(r"`([^`]+)`", answer)} == set(ANSWERS)
    for name, definition in ANSWERS.items():
        assert definition in (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_documentation_exist(page: Path) -> None:
    tops = "|".join(("src", "stream", "models", "engines", "docs", "configs", "scripts", "tests", "examples"))
    named = re.findall(rf"`((?:{tops})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_the_documentation_has_blocks_and_some_are_run() -> None:
    assert len(BLOCKS) > 10
    assert len(TO_RUN) >= 4


@pytest.mark.parametrize(("place", "body"), [(place, body) for place, _, _, body in BLOCKS], ids=lambda v: str(v)[:50])
def test_commands_and_options_exist(place: str, body: str) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    for line in body.splitlines():
        words = shlex.split(line, comments=True)
        for word in ("|", "&&", ";"):
            words = words[: words.index(word)] if word in words else words
        if words and words[0] == "mien":
            _check(root, words[1:], f"{place}: {line}")


def _check(command: TyperCommand | TyperGroup, words: list[str], line: str) -> None:
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"-h", "--help"}
    subcommands = getattr(command, "commands", {})
    for number, word in enumerate(words):
        if word.startswith("-") and not re.fullmatch(r"-\d.*", word):
            assert word.partition("=")[0] in options, f"{line}\nno option {word}"
        elif subcommands:
            assert word in subcommands, f"{line}\nno command {word}"
            _check(subcommands[word], words[number + 1 :], line)
            return


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.assets
@pytest.mark.parametrize(("place", "codes", "body"), [(b[0], b[2], b[3]) for b in TO_RUN], ids=lambda v: str(v)[:50])
def test_marked_blocks_run(place: str, codes: tuple[int, ...], body: str, tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "sample.mp4")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["sh", "-ec", body], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=280, check=False,
    )  # fmt: skip
    assert ran.returncode in codes, f"{place} ended with {ran.returncode}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
    assert "Traceback" not in ran.stderr


@pytest.mark.long
@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_the_site_builds_strictly() -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    ran = subprocess.run(["sh", str(ROOT / "scripts" / "docs.sh")], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (ROOT / "build" / "site" / "performance.html").is_file()
