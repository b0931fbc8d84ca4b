"""A person at rest: what is kept, who may read it, and when it is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from mien.clock import NS_PER_S
from mien.errors import ConfigError
from mien.models import baseline
from mien.models.baseline import FACE_SHARE, ROW, Person, RunningRest, faces_at_rest
from mien.models.voice.columns import ENERGY, F0, GIVEN, STATE, WEIGHT
from mien.models.voice.reference import SHARE, compare
from mien.models.weights import REST

FACE = json.loads(REST.read_text())["extractor"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(*_: object, **__: object) -> Path:
        return tmp_path / "config"

    monkeypatch.setattr(platformdirs, "user_config_path", config)


def _kept(name: str = "ada") -> Person:
    random = np.random.default_rng(0)
    face = random.standard_normal((150, ROW)).astype(np.float32)
    voice = random.standard_normal((400, WEIGHT)).astype(np.float32)
    voiced = np.arange(400) % 100 < 80
    baseline.store(
        name,
        baseline.face_at_rest(face, np.ones(150, np.bool_), 15.0, FACE),
        baseline.voice_at_rest(voice, voiced, "voice-1"),
    )
    return Person.load(name)


def test_baselines_are_private_listed_and_deleted() -> None:
    assert list(baseline.people()) == []
    _kept("zoe")
    person = _kept()
    path = baseline.baseline_path("ada")
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(baseline.people()) == ["ada", "zoe"]
    assert person.tag.startswith("ada-")
    baseline.forget("ada")
    assert list(baseline.people()) == ["zoe"]
    with pytest.raises(ConfigError, match="nobody called 'ada' was calibrated; there is zoe; do so with: mien cal"):
        Person.load("ada")
    with pytest.raises(ConfigError, match="nobody called"):
        baseline.forget("ada")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 33, "é", "a\n", "con.json", "-x"])
def test_invalid_names_are_refused(name: str) -> None:
    for action in (Person.load, baseline.forget, baseline.baseline_path):
        with pytest.raises(ConfigError, match="not a name for a person"):
            action(name)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_file_readable_by_others_is_refused() -> None:
    _kept()
    baseline.baseline_path("ada").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Person.load("ada")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"format":9,"made":""}', b'{"format":1,"made":3}'])
def test_a_damaged_file_is_refused(content: bytes) -> None:
    _kept()
    path = baseline.baseline_path("ada")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="calibrate again with: mien calibrate ada"):
        Person.load("ada")


def test_other_weights_and_versions_are_refused() -> None:
    person = _kept()
    for ask in (lambda: person.face(FACE + "x"), lambda: person.voice("voice-2")):
        with pytest.raises(
            ConfigError, match=r"other weights or another version.*calibrate again with: mien calibrate"
        ):
            ask()
    # Measured with a face encoder of one's own: nothing is known of how faces look at rest to that.
    own = baseline.Rest("own", 5.0, [0.0] * ROW)
    baseline.store("bob", own, None)
    with pytest.raises(ConfigError, match="shipped face encoder only"):
        Person.load("bob").face("own")


def _spoilt(change: Callable[[dict[str, dict[str, list[float]]]], None]) -> Person:
    _kept()
    path = baseline.baseline_path("ada")
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return Person.load("ada")


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="is damaged; calibrate again"):
        _spoilt(lambda tree: tree["face"].update(mean=[1e38] * ROW)).face(FACE)
    with pytest.raises(ConfigError, match="calibrate again"):
        _spoilt(lambda tree: tree["voice"].update(mean=[1.0])).voice("voice-1")


def test_voice_is_compared_with_part_of_its_baseline() -> None:
    reference = _kept().voice("voice-1")
    assert reference is not None
    mean = np.array(json.loads(baseline.baseline_path("ada").read_text())["voice"]["mean"], np.float32)
    rows = np.random.default_rng(3).standard_normal((5, WEIGHT)).astype(np.float32)
    made = compare(rows, reference)
    np.testing.assert_allclose(made[:, STATE], rows[:, STATE] - SHARE * mean[STATE], atol=1e-6)
    assert (made[:, WEIGHT] == 1.0).all()
    assert (made[:, GIVEN] == np.float32(SHARE)).all()
    np.testing.assert_allclose(made[:, WEIGHT + 2], rows[:, ENERGY] - mean[ENERGY], atol=1e-6)
    np.testing.assert_allclose(made[:, WEIGHT + 3], rows[:, F0] - mean[F0], atol=1e-6)


def test_face_is_shifted_by_its_difference_at_rest() -> None:
    general = faces_at_rest(FACE)
    baseline.store("ada", baseline.Rest(FACE, 15.0, (general + 0.2).tolist()), None)
    person = Person.load("ada")
    moved = person.face(FACE)
    assert moved is not None
    np.testing.assert_allclose(moved[baseline.EMBEDDING], FACE_SHARE * 0.2, atol=1e-5)
    assert not moved[: baseline.EMBEDDING.start].any()
    assert person.voice("any") is None


def test_too_little_face_or_voice_is_reported() -> None:
    rows = np.zeros((100, ROW), np.float32)
    with pytest.raises(ConfigError, match=r"in view for 1\.0 s, 3 are needed"):
        baseline.face_at_rest(rows, np.arange(100) < 10, 10.0, FACE)
    with pytest.raises(ConfigError, match=r"in view for 0\.0 s"):
        baseline.face_at_rest(rows[:0], np.zeros(0, np.bool_), 0.0, FACE)
    with pytest.raises(ConfigError, match=r"1\.0 s of voice were heard, 3 are needed"):
        baseline.voice_at_rest(np.zeros((100, WEIGHT), np.float32), np.arange(100) < 50, "v")


def test_running_baseline_is_slow_partial_and_decays() -> None:
    general = faces_at_rest(FACE)
    look = general + 0.3
    rest = RunningRest(FACE)
    first, *_, after_a_minute = (rest(look, k * NS_PER_S // 10) for k in range(601))
    assert not first.any()
    np.testing.assert_allclose(after_a_minute[baseline.EMBEDDING], FACE_SHARE * 0.3 / 2, rtol=0.02)
    for k in range(601, 20_000):
        last = rest(look, k * NS_PER_S // 10)
    assert 0.3 * FACE_SHARE * 0.7 < last[baseline.EMBEDDING].mean() < 0.3 * FACE_SHARE
    rest.reset()
    assert not rest(look, 0).any()


@pytest.mark.parametrize("content", [None, b"torn", b"{}"])
def test_resting_faces_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "rest.json"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(baseline, "REST", path)
    with pytest.raises(ConfigError, match=r"rest\.json cannot be read .*; install mien again"):
        RunningRest(FACE)
