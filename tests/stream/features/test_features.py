"""Feature tables: every column is documented, and holds what the extractors made."""

from __future__ import annotations

import csv
import os
import re
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soxr
from typer.testing import CliRunner

from mien.cli import app
from mien.clock import NS_PER_MS, NS_PER_S
from mien.errors import ConfigError, FileError, RecordingError
from mien.install import SAMPLE
from mien.messages import FeatureWindow, Word
from mien.models.voice.columns import ENERGY, F0, VAD
from mien.stream.features.action_units import ACTION_UNITS, BLENDSHAPES, action_units
from mien.stream.features.columns import COLUMNS, dictionary
from mien.stream.features.table import FeatureTable, boxes_of, check_features
from mien.stream.modalities.audio import SPEC as AUDIO
from mien.stream.modalities.vision import SPEC as VISION
from mien.stream.offline.agreement import agreement_table, openface_means
from mien.stream.offline.clips import ClipPredictor, ClipRows
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.geometry import upright_bgr
from tests.stream.recording.sessions import live, write
from tests.stream.sources.media import RATE, write_tracks

ROOT = Path(__file__).parents[3]


def message(modality: str, values: object, valid: list[bool], times_ms: list[int], **more: object) -> FeatureWindow:
    return FeatureWindow(
        session="s",
        modality=modality,
        run=1,
        seq=0,
        t_start_ns=0,
        t_end_ns=NS_PER_S,
        extractor="",
        values=np.asarray(values, np.float32),
        valid=np.array(valid),
        times_ns=np.array(times_ms, np.int64) * NS_PER_MS,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def table() -> FeatureTable:
    frames = np.zeros((2, VISION.dim))
    frames[0, BLENDSHAPES.index("browInnerUp")] = 0.5
    frames[0, 52:58] = [0.1, 0.2, 0.3, 0.4, 0.5, 1.5]
    hops = np.zeros((1, AUDIO.dim))
    hops[0, [ENERGY, F0, VAD]] = [-3.0, 1.0, 0.75]
    words = (
        Word("well", 30 * NS_PER_MS, 60 * NS_PER_MS, True, 0.9),
        Word("hm", 70 * NS_PER_MS, 80 * NS_PER_MS, True, 0.3, True),
        Word("maybe", 85 * NS_PER_MS, 95 * NS_PER_MS, False, 0.5),
    )
    made = FeatureTable()
    made.add(
        "a, b.mp4",
        [
            message("vision", frames, [True, False], [0, 40]),
            message("audio", hops, [True], [10]),
            message("text", np.zeros((0, 384)), [], [], words=words),
        ],
        boxes_of([(1.0, 2.0, 3.0, 4.0), None]),
    )
    return made


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_csv_has_the_documented_columns_and_their_values(table: FeatureTable, tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    table.write(path)
    rows = read(path)
    assert list(rows[0]) == [column.name for column in COLUMNS]
    assert [(row["kind"], row["t_s"], row["valid"], row["clip"]) for row in rows] == [
        ("frame", "0.0", "True", "a, b.mp4"),
        ("hop", "0.01", "True", "a, b.mp4"),
        ("word", "0.03", "True", "a, b.mp4"),
        ("frame", "0.04", "False", "a, b.mp4"),
        ("word", "0.07", "False", "a, b.mp4"),
    ]
    face, hop, word, nobody, _ = rows
    assert float(face["blendshape_browInnerUp"]) == float(face["AU01"]) == 0.5
    assert [float(face[f"head_{name}"]) for name in ("yaw", "scale")] == [pytest.approx(0.1), 1.5]
    assert (face["box_left"], face["box_bottom"]) == ("1.0", "4.0")
    assert (float(hop["energy"]), float(hop["pitch"]), float(hop["voice_activity"])) == (-3.0, 300.0, 0.75)
    assert (word["word"], word["word_end_s"]) == ("well", "0.06")
    assert nobody["AU01"] == nobody["box_left"] == hop["AU01"] == face["energy"] == ""
    assert path.stat().st_mode & 0o777 == 0o600


def test_parquet_has_the_same_values_and_units(table: FeatureTable, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    table.write(tmp_path / "f.parquet")
    table.write(tmp_path / "f.csv")
    exact = pandas.read_parquet(tmp_path / "f.parquet")
    text = pandas.read_csv(tmp_path / "f.csv")
    assert list(exact.columns) == list(text.columns)
    for column in COLUMNS:
        if column.type == "number":
            np.testing.assert_allclose(exact[column.name].astype(float), text[column.name].astype(float))
    schema = parquet.read_schema(tmp_path / "f.parquet")
    assert schema.field("pitch").metadata[b"unit"] == b"Hz"
    assert all(schema.field(column.name).metadata[b"meaning"] for column in COLUMNS)


def test_the_documentation_shows_the_dictionary() -> None:
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert dictionary() in (ROOT / "docs" / "features.md").read_text(encoding="utf-8")


def test_action_units_match_their_blendshapes() -> None:
    shapes = np.zeros((1, 52), np.float32)
    shapes[0, [BLENDSHAPES.index("mouthSmileLeft"), BLENDSHAPES.index("jawOpen")]] = 1.0
    shapes[0, BLENDSHAPES.index("mouthClose")] = 0.25
    made = dict(zip((unit.name for unit in ACTION_UNITS), action_units(shapes)[0].tolist(), strict=True))
    assert {name: value for name, value in made.items() if value} == {"AU12": 0.5, "AU25": 0.75, "AU26": 1.0}


def test_the_agreement_with_openface_is_measured_by_emotion(tmp_path: Path) -> None:
    ids = [f"01-01-{emotion:02d}-01-01-01-{actor:02d}" for actor in (1, 2) for emotion in range(1, 9)]
    units = np.array([[float(name[6:8]), 0.0] for name in ids], np.float32)
    np.savez(tmp_path / "u.npz", ids=np.array(ids), columns=np.array(["AU12_r", "AU04_c"]), units=units)
    theirs = openface_means(tmp_path / "u.npz")
    assert list(theirs) == ["AU12"]
    assert theirs["AU12"].tolist() == [1, 3, 4, 5, 6, 7, 8]
    *_, row, mean = agreement_table({unit.name: -theirs["AU12"] for unit in ACTION_UNITS}, theirs).splitlines()
    assert row == "| AU12 | lip corner puller | -1.00 | neutral | surprise |"
    assert mean == "| mean | | -1.00 | | |"


def test_unwritable_output_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        check_features(tmp_path / "f.xlsx")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow; .*\[features\]"):
        check_features(tmp_path / "f.parquet")
    check_features(tmp_path / "f.csv")


@pytest.mark.assets
def test_predict_writes_the_features_of_a_clip(tmp_path: Path) -> None:
    path, out, clip = tmp_path / "f.csv", tmp_path / "p.csv", tmp_path / "clip.mkv"
    images = [upright_bgr(picture) for _, picture in islice(open_clip(SAMPLE).pictures(), 100)]
    write_tracks(clip, [soxr.resample(read_sound(SAMPLE)[: 4 * 16_000], 16_000, RATE)], images=images)
    ran = CliRunner().invoke(
        app, ["predict", str(clip), "--asr", "none", "--engine", "onnx", "--features", str(path), "-o", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    rows = read(path)
    kinds = [row["kind"] for row in rows]
    assert kinds.count("frame") == 100
    assert kinds.count("hop") == pytest.approx(4 * 50, abs=5)
    faces = [row for row in rows if row["kind"] == "frame" and row["valid"] == "True"]
    assert len(faces) > 90
    assert all(float(row["box_left"]) < float(row["box_right"]) for row in faces)


@pytest.mark.assets
@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_predict_keeps_the_clips_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    if not hasattr(signal, number) or os.name != "posix":
        pytest.skip("not a signal that a process here can send itself")
    for name in "ab":
        write_tracks(tmp_path / f"{name}.mkv", [soxr.resample(read_sound(SAMPLE)[:16_000], 16_000, RATE)])
    out, make = tmp_path / "p.csv", ClipPredictor.make
    out.write_text("an earlier run\n")

    def interrupted(self: ClipPredictor, clip: str) -> ClipRows:
        if clip.endswith("b.mkv"):
            os.kill(os.getpid(), getattr(signal, number))
        return make(self, clip)

    monkeypatch.setattr(ClipPredictor, "make", interrupted)
    options = ["--asr", "none", "--engine", "onnx", "-o", str(out), "--features", str(tmp_path / "f.csv")]
    ran = CliRunner().invoke(app, ["predict", str(tmp_path), *options])
    assert ran.exit_code != 0
    assert out.read_text() == "an earlier run\n"
    assert not (tmp_path / "f.csv").exists()
    for part in (tmp_path / "p.csv.part", tmp_path / "f.csv.part"):
        assert f"stopped: {part} has 1 of 2 clips" in ran.output
        assert {Path(row["clip"]).name for row in read(part)} == {"a.mkv"}


@pytest.mark.assets
def test_predictions_that_cannot_be_written_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tracks(tmp_path / "a.mkv", [soxr.resample(read_sound(SAMPLE)[:16_000], 16_000, RATE)])
    folder, features, make = tmp_path / "out", tmp_path / "f.csv", ClipPredictor.make
    folder.mkdir()

    def made_and_then_gone(self: ClipPredictor, clip: str) -> ClipRows:
        folder.rmdir()
        return make(self, clip)

    monkeypatch.setattr(ClipPredictor, "make", made_and_then_gone)
    arguments = [str(tmp_path / "a.mkv"), "-o", str(folder / "p.csv"), "--features", str(features)]
    ran = CliRunner().invoke(app, ["predict", "--asr", "none", "--engine", "onnx", *arguments])
    assert isinstance(ran.exception, FileError)
    assert {Path(row["clip"]).name for row in csv.DictReader(ran.stdout.splitlines())} == {"a.mkv"}
    assert features.is_file()


def test_recorded_rows_of_other_extractors_are_not_named_as_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "old.mcap", live(3))
    result = CliRunner().invoke(app, ["export", str(path), "--features", str(tmp_path / "f.csv")])
    assert isinstance(result.exception, RecordingError)
    assert re.search(r"its (vision|audio) rows were made by test-\w+, and this mien knows only", str(result.exception))
    assert not (tmp_path / "f.csv").exists()


@pytest.mark.parametrize(
    "options", [["-o", "clip.csv"], ["--features", "clip.csv"], ["-o", "f.csv", "--features", "f.csv"]]
)
def test_predict_does_not_overwrite_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.csv").write_bytes(b"a clip of another name")
    result = CliRunner().invoke(app, ["predict", "clip.csv", *options])
    assert isinstance(result.exception, FileError)
    assert "is used by this command already" in str(result.exception)
    assert Path("clip.csv").read_bytes() == b"a clip of another name"
