"""A person at rest: measured in the sample, used, named, recorded, replayed and deleted; real processes throughout."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import mien
from mien.clock import NS_PER_S
from mien.install import SAMPLE
from mien.stream.recording.reader import open_recording
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import SAMPLE_RATE
from tests.e2e.conftest import command
from tests.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.assets]

PARTS = json.loads(SAMPLE.with_suffix(".json").read_text())["parts"]


class Home:
    """A user's home of their own, whose configuration is empty."""

    def __init__(self, folder: Path) -> None:
        self.config = folder
        self._environment = os.environ | {"XDG_CONFIG_HOME": str(folder)}

    def mien(self, *arguments: str, expected: int = 0) -> subprocess.CompletedProcess[str]:
        """A command run to its end."""
        ran = subprocess.run(
            command(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240, check=False,
            env=self._environment,
        )  # fmt: skip
        assert ran.returncode == expected, ran.stderr
        assert "Traceback" not in ran.stderr
        return ran


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home in which the person of the sample was calibrated by its neutral part."""
    if os.name == "nt":
        pytest.skip("the folder of the configuration cannot be chosen there")
    home = Home(tmp_path_factory.mktemp("config"))
    made = home.mien("calibrate", "ada", "--clip", str(SAMPLE), "--seconds", str(PARTS[0]["end_s"]), "--json")
    kept = json.loads(made.stdout)
    assert kept["state"] == "can be used"
    assert kept["name"] == "ada"
    assert kept["face"] == "6.0 s"
    assert "readable by you alone" in made.stderr
    path = Path(kept["path"])
    assert path.is_relative_to(home.config)
    assert path.stat().st_mode & 0o777 == 0o600
    return home


def test_baselines_are_listed_shown_and_deleted(home: Home) -> None:
    home.mien("calibrate", "bob", "--clip", str(SAMPLE), "--mic", "none", "--seconds", "5")
    assert set(json.loads(home.mien("calibrate", "--list", "--json").stdout)) == {"ada", "bob"}
    assert json.loads(home.mien("calibrate", "bob", "--show", "--json").stdout)["voice"] is None
    assert "bob" in home.mien("calibrate", "--list").stdout
    home.mien("calibrate", "--delete", "bob")
    assert "bob" not in home.mien("calibrate", "--list").stdout
    assert "nobody called 'bob'" in home.mien("calibrate", "bob", "--delete", expected=2).stderr
    assert "not a name for a person" in home.mien("calibrate", "../x", "--clip", str(SAMPLE), expected=2).stderr
    assert "give only one of" in home.mien("calibrate", "--list", "--delete", expected=2).stderr


def test_clip_without_a_face_is_reported_and_stores_nothing(home: Home, tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "grey.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (320, 240))
    import numpy as np

    for _ in range(150):
        writer.write(np.full((240, 320, 3), 128, np.uint8))
    writer.release()
    output = home.mien("calibrate", "cleo", "--clip", str(path), expected=3).stderr
    assert "nothing was stored: a face was in view for 0.0 s, 3 are needed" in output
    assert "nobody called 'cleo'" in home.mien("run", "--clip", str(SAMPLE), "--person", "cleo", expected=2).stderr


def test_sample_keeps_its_emotions_and_names_the_person(home: Home) -> None:
    output = home.mien("predict", str(SAMPLE), "--hop", "0.5", "--person", "ada", "--asr", "none").stdout
    rows = list(csv.DictReader(io.StringIO(output)))
    assert all("+ada-" in row["model"] for row in rows)
    for part in PARTS[:3]:  # without words, anger is not what this face and voice show most
        later = [r for r in rows if part["start_s"] + 3 < float(r["t_s"]) <= part["end_s"]]
        counts = Counter(row["emotion"] for row in later)
        assert counts.most_common(1)[0][0] == part["emotion"], (part["emotion"], counts)
    without = list(csv.DictReader(io.StringIO(home.mien("predict", str(SAMPLE), "--asr", "none").stdout)))
    neutral = [r for r in without if float(r["t_s"]) <= PARTS[0]["end_s"]]
    with_rest = [r for r in rows if float(r["t_s"]) <= PARTS[0]["end_s"]]
    # What it is for: rest is called neutral more surely.
    assert sum(float(r["neutral"]) for r in with_rest) > sum(float(r["neutral"]) for r in neutral)


def test_recording_of_a_person_replays_bit_equal_without_the_baseline(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "ada.mcap"
    output = home.mien(
        "run", "--clip", str(SAMPLE), "--fast", "--asr", "none", "--person", "ada", "--port", str(free_ports()),
        "--json", "--record", str(path),
    )  # fmt: skip
    assert "compared with ada at rest (face and voice, " in output.stderr
    predictions = [json.loads(line) for line in output.stdout.splitlines()]
    (model,) = {p["model"] for p in predictions}
    assert "+ada-" in model
    about = open_recording(path).about
    assert about is not None
    assert about.model == model
    assert about.config["person"]["name"] == "ada"
    # In a home without any baselines.
    other = Home(tmp_path / "other")
    again = tmp_path / "again.mcap"
    replayed = other.mien("replay", str(path), "--speed", "0", "--port", str(free_ports()), "--json", "--record",
                          str(again))  # fmt: skip
    assert f"{len(predictions)} of {len(predictions)} predictions are bit-equal" in replayed.stderr
    shown = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert [p["sentiment"] for p in shown] == [p["sentiment"] for p in predictions]
    assert {p["model"] for p in shown} == {model}
    repeated = open_recording(again).about
    assert repeated is not None
    assert repeated.model == model


def test_recognizer_uses_a_baseline_as_run_does(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of frames and sound that a program gives, and of a file in one call."""
    output = home.mien("run", "--clip", str(SAMPLE), "--fast", "--asr", "none", "--person", "ada", "--port",
                     str(free_ports()), "--json")  # fmt: skip
    theirs = [json.loads(line) for line in output.stdout.splitlines()]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home.config))
    sound, step = read_sound(SAMPLE), SAMPLE_RATE // 10
    items: list[mien.Frame | mien.Sound] = [
        mien.Sound(sound[at : at + step], SAMPLE_RATE, at / SAMPLE_RATE) for at in range(0, len(sound), step)
    ]
    items += [mien.Frame(upright_bgr(frame), t_ns / NS_PER_S) for t_ns, frame in open_clip(SAMPLE).pictures()]
    with mien.Recognizer(person="ada", asr="none") as recognizer:
        given = list(recognizer.every(sorted(items, key=lambda item: item.t)))
    for made in (given, mien.analyze(SAMPLE, person="ada", asr="none").predictions):
        assert [each.t_end_ns for each in made] == [each["t_end_ns"] for each in theirs]
        for ours, other in zip(made, theirs, strict=True):
            assert ours.model == other["model"]
            assert "+ada-" in ours.model
            assert ours.emotions == pytest.approx(other["emotions"], abs=1e-6)
            assert ours.sentiment == pytest.approx(other["sentiment"], abs=1e-6)
    with pytest.raises(mien.ConfigError, match="nobody called 'cleo'"):
        mien.Recognizer(person="cleo")


def test_other_extractors_are_refused_with_advice(home: Home) -> None:
    path = home.config / "mien" / "people" / "ada.json"
    content = path.read_text()
    old = home.config / "mien" / "people" / "old.json"
    old.touch(0o600)
    old.write_text(content.replace("mien-audio-", "mien-audio-0"))
    assert "calibrate again" in home.mien("calibrate", "--list").stdout
    output = home.mien("predict", str(SAMPLE), "--person", "old", expected=2).stderr
    assert "calibrate again with: mien calibrate old" in output
    output = home.mien("run", "--clip", str(SAMPLE), "--fast", "--person", "old", "--port", str(free_ports()),
                     expected=2).stderr  # fmt: skip
    assert "calibrate again with: mien calibrate old" in output
    old.unlink()
