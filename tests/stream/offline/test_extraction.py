"""Extraction gives the live extractors' rows, resumes where it was stopped, and lists what it skipped."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import mien
from mien.cli import app
from mien.config import AssetsConfig
from mien.errors import AssetError, DataError, MienError
from mien.files import disk_use
from mien.messages import Float32
from mien.models.data.dataset_files import read_dataset, read_manifest
from mien.models.training.speech import SpeechTraining
from mien.stream.modalities.audio import AudioExtractor
from mien.stream.offline import labelled
from mien.stream.offline.extraction import extract
from mien.stream.offline.items import ExtractOptions, shortened
from mien.stream.offline.labelled import read_labelled
from mien.stream.offline.plan import TrainPlan
from mien.stream.offline.stages import train
from mien.stream.sources.clip import read_sound
from tests.stream.sources.media import RATE, write_tracks

AUDIO = ExtractOptions(modalities=("audio",))


def tone(seconds: float, pitch_hz: float) -> Float32:
    t = np.arange(int(seconds * 16_000)) / 16_000
    loud = 0.15 * (1 + np.sin(2 * np.pi * 4 * t))
    return np.asarray(loud * np.sin(2 * np.pi * pitch_hz * t), np.float32)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = ["file,emotion,sentiment,speaker,split,start,end"]
    for number in range(5):
        soundfile.write(folder / f"{number}.wav", tone(1.0 + 0.2 * number, 120 + 40 * number), 16_000)
        emotion, split = "happy" if number % 2 else "sad", "valid" if number == 4 else "train"
        lines.append(f"{number}.wav,{emotion},{number - 2},s{number},{split},,")
    lines += [
        "3.wav,sad,,s3,train,0.2,0.9",
        "missing.wav,sad,,s9,train,,",
        "0.wav,sad,,s0,train,2.0,2.0",
        "broken.wav,sad,,s8,train,,",
    ]
    (folder / "broken.wav").write_bytes(b"RIFF this is no sound")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def test_rows_are_those_of_the_live_extractor(clips: Path, tmp_path: Path) -> None:
    extract([clips], tmp_path / "out", AUDIO, jobs=1)
    dataset = read_dataset(tmp_path / "out")
    sample = next(s for s in dataset.samples if s.labels.id == "2.wav")
    expected = AudioExtractor().extract(read_sound(clips / "2.wav"))
    np.testing.assert_array_equal(sample.tracks["audio"].mask, expected.valid.astype(np.float32))
    np.testing.assert_array_equal(sample.tracks["audio"].values, expected.values * expected.valid[:, None])
    assert sample.labels.speaker == "s2"
    assert sample.labels.sentiment == 0
    part = [s for s in dataset.samples if s.labels.duration_ns == 700_000_000]
    assert len(part) == 1
    assert len(part[0].tracks["audio"].values) == 35


def test_cache_is_private_and_bounded(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "user_cache_path", lambda _: tmp_path / "cache")
    root = labelled.cache_folder()
    read_labelled([clips], AUDIO, jobs=1)
    (first,) = root.iterdir()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in first.iterdir()} == {0o600}
    os.utime(first / "plan.json", (0, 0))
    read_labelled([clips], ExtractOptions(modalities=("audio",), limit=1), jobs=1)
    assert len(list(root.iterdir())) == 2
    monkeypatch.setattr(labelled, "MOST_BYTES", disk_use(root) - 1)
    read_labelled([clips], ExtractOptions(modalities=("audio",), limit=1), jobs=1)
    assert [path == first for path in root.iterdir()] == [False], "the least recently used one is removed"
    shown = json.loads(CliRunner().invoke(app, ["cache", "datasets", "--json"]).stdout)
    assert (shown[0]["bytes"], shown[0]["path"]) == (disk_use(root), str(root))
    assert CliRunner().invoke(app, ["cache", "datasets", "--clear"]).exit_code == 0
    assert list(root.iterdir()) == []


def test_clips_without_text_are_recognised_by_default(tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.mkdir()
    shutil.copy(Path(mien.__file__).parent / "sample.mp4", said / "a.mp4")
    (said / "labels.csv").write_text("file,emotion,start,end\na.mp4,neutral,0.2,5.6\n")
    command = ["extract", str(said), "--modalities", "text", "--jobs", "1", "-o"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "with")])
    assert result.exit_code == 0, result.output
    assert "1 clip without text, 5 s of sound: tiny.en recognises" in result.stderr
    assert "four parts" in (read_dataset(tmp_path / "with").samples[0].labels.text or "")
    result = CliRunner().invoke(app, ["extract", str(said), "--asr", "none", "--jobs", "1", "-o", str(tmp_path / "no")])
    assert result.exit_code == 0, result.output
    assert "recognises" not in result.stderr
    assert set(read_dataset(tmp_path / "no").samples[0].tracks) == {"audio", "vision"}


def test_unreadable_items_are_listed_with_the_reason(clips: Path, tmp_path: Path) -> None:
    manifest = extract([clips], tmp_path / "out", AUDIO, jobs=1)
    reasons = {s.id: s.reason for s in manifest.skipped}
    assert reasons["missing.wav"] == "clip missing"
    assert reasons["0.wav"] == "zero duration"
    assert "broken.wav" in reasons["broken.wav"]
    assert manifest.counts == {"clips": {"train": 5, "valid": 1}}


def test_dataset_of_skipped_items_is_an_error(clips: Path, tmp_path: Path) -> None:
    """Also in its exit code; and what was put right is tried again."""
    (clips / "labels.csv").write_text("file,emotion\nmissing.wav,sad\nbroken.wav,sad\n")
    arguments = ["extract", str(clips), "-o", str(tmp_path / "out"), "--modalities", "audio", "--jobs", "1"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, DataError)
    assert str(result.exception) == "nothing was extracted: all 2 items were skipped, first missing.wav: clip missing"
    assert not list((tmp_path / "out").iterdir())
    soundfile.write(clips / "missing.wav", tone(1.0, 200), 16_000)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert read_manifest(tmp_path / "out").counts == {"clips": {"all": 1}}


@pytest.mark.assets
def test_none_recognises_no_words(clips: Path, tmp_path: Path) -> None:
    options = ExtractOptions(modalities=("text", "audio"), asr="none")
    manifest = extract([clips], tmp_path / "out", options, jobs=1)
    assert [spec.name for spec in manifest.specs] == ["audio"]
    assert {s.reason for s in manifest.skipped} & {"clip missing"}
    assert manifest.counts == {"clips": {"train": 5, "valid": 1}}


def test_resumed_run_gives_the_same_dataset(clips: Path, tmp_path: Path) -> None:
    options = ExtractOptions(modalities=("audio",), audio_copies=1)
    extract([clips], tmp_path / "whole", options, jobs=1)
    extract([clips], tmp_path / "out", options, jobs=1)
    (tmp_path / "out" / "manifest.json").unlink()
    shard = tmp_path / "out" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])  # as if the power had failed, on a file system without order
    seen: list[int] = []
    extract([clips], tmp_path / "out", options, jobs=1, progress=lambda done, _: seen.append(done))
    assert seen[0] == 0
    for name in ("shard-00000.safetensors", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    seen.clear()
    extract([clips], tmp_path / "out", options, jobs=1, progress=lambda done, _: seen.append(done))
    assert len(seen) == 1  # everything was there


def test_another_track_can_be_chosen(tmp_path: Path) -> None:
    (folder := tmp_path / "clips").mkdir()
    write_tracks(folder / "two.mkv", [np.repeat(tone(1.0, 200), RATE // 16_000), np.zeros(RATE, np.float32)])
    (folder / "labels.csv").write_text("file,emotion\ntwo.mkv,sad\n")
    rows = []
    for track in (0, 1, 2):
        options = ["--modalities", "audio", "--jobs", "1", "--audio-track", str(track)]
        result = CliRunner().invoke(app, ["extract", str(folder), "-o", str(tmp_path / str(track)), *options])
        assert result.exit_code == 0, result.output
        (sample,) = read_dataset(tmp_path / str(track)).samples
        rows.append(sample.tracks["audio"].values)
    assert np.array_equal(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2])


def test_a_folder_of_another_run_is_refused(clips: Path, tmp_path: Path) -> None:
    extract([clips], tmp_path / "out", AUDIO, jobs=1)
    with pytest.raises(DataError, match="other corpora, options or extractors"):
        extract([clips], tmp_path / "out", ExtractOptions(modalities=("audio",), limit=2), jobs=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(DataError, match="not empty"):
        extract([clips], tmp_path / "mine", AUDIO, jobs=1)


def test_several_processes_equal_one(clips: Path, tmp_path: Path) -> None:
    extract([clips], tmp_path / "one", AUDIO, jobs=1)
    extract([clips, clips], tmp_path / "two", AUDIO, jobs=2)
    one = (tmp_path / "one" / "shard-00000.safetensors").read_bytes()
    assert (tmp_path / "two" / "shard-00000.safetensors").read_bytes() == one
    assert (tmp_path / "two" / "shard-00001.safetensors").read_bytes() == one


def test_segment_ends_with_its_clip(clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (clips / "labels.csv").write_text(
        "id,file,emotion,start,end\nwhole,0.wav,sad,,\nlong,0.wav,sad,0.5,7\nlate,0.wav,sad,1200,4500\n"
    )
    manifest = extract([clips], tmp_path / "out", AUDIO, jobs=1)
    assert {s.id: s.reason for s in manifest.skipped} == {"late": "it begins at 1200 s, and its clip lasts 1 s"}
    lengths = {s.labels.id: s.labels.duration_ns for s in read_dataset(tmp_path / "out").samples}
    assert lengths == {"whole": 10**9, "long": 5 * 10**8}
    assert caplog.messages == ["long ends at 7 s, and its clip lasts 1 s"]


def test_clip_in_two_splits_of_two_corpora_is_refused(clips: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    (other / "labels.csv").write_text("file,emotion,split\n../clips/2.wav,sad,valid\n")
    with pytest.raises(DataError, match=r"2\.wav is in two splits, train and valid"):
        extract([clips, other], tmp_path / "out", AUDIO, jobs=1)
    with pytest.raises(DataError, match=r"2\.wav is in two splits, train and valid"):
        read_labelled([clips, other], AUDIO, cache=tmp_path / "cache", jobs=1)


def test_changed_files_are_not_taken_for_the_old_ones(clips: Path, tmp_path: Path) -> None:
    """Neither a corrected label, nor a clip outside the folder, nor one of a table given by its own name."""
    extract([clips], tmp_path / "out", AUDIO, jobs=1)
    table = clips / "labels.csv"
    table.write_text(table.read_text().replace("0.wav,sad,-2", "0.wav,fear,-2"))
    with pytest.raises(DataError, match="files have changed since"):
        extract([clips], tmp_path / "out", AUDIO, jobs=1)
    (other := tmp_path / "other").mkdir()
    (other / "labels.csv").write_text("file,emotion\n../clips/1.wav,sad\n")
    lengths = []
    for seconds in (1, 2):
        soundfile.write(clips / "1.wav", tone(seconds, 200), 16_000)
        for source in (other, table):
            dataset = read_labelled([source], AUDIO, cache=tmp_path / "cache", jobs=1)
            lengths.append(next(s for s in dataset.samples if s.labels.id.endswith("1.wav")).labels.duration_ns)
    assert lengths == [10**9, 10**9, 2 * 10**9, 2 * 10**9]


def test_training_extracts_with_the_assets_of_its_plan(clips: Path, tmp_path: Path) -> None:
    assets = AssetsConfig(cache=str(tmp_path / "empty"), offline=True)
    plan = TrainPlan(data=(str(clips),), work=str(tmp_path / "work"), stages=("extract",), jobs=1, extract=AUDIO)
    with pytest.raises(AssetError, match="forbids fetching"):
        train(msgspec.structs.replace(plan, assets=assets))
    train(plan)
    train(msgspec.structs.replace(plan, assets=assets))  # the rows are there already


def test_corrected_label_trains_the_voice_encoder_anew(clips: Path, tmp_path: Path) -> None:
    speech = SpeechTraining(steps=1, batch=4)
    plan = TrainPlan(data=(str(clips),), work=str(tmp_path / "work"), stages=("speech",), jobs=1, extract=AUDIO,
                     speech=speech)  # fmt: skip
    assert train(plan)["speech"] is not None
    assert train(plan)["speech"] is None, "nothing has changed"
    table = clips / "labels.csv"
    table.write_text(table.read_text().replace("0.wav,sad,-2", "0.wav,fear,-2"))
    assert train(plan)["speech"] is not None


def test_folder_that_cannot_be_made_is_one_clear_line(clips: Path, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("mine")
    for command, named in (
        (["extract", str(clips), "--modalities", "audio", "-o", str(file)], file),
        (["extract", str(clips), "--modalities", "audio", "-o", str(file / "out")], file / "out"),
        (["train", "--data", str(clips), "--work", str(file)], file),
        (["eval", str(clips), "--modalities", "audio", "--plots", str(file)], file),
    ):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, MienError)
        assert str(named) in str(result.exception)
        assert "choose another" in str(result.exception)
    assert file.read_text() == "mine"


def test_copies_are_for_training_only(clips: Path, tmp_path: Path) -> None:
    extract([clips], tmp_path / "out", ExtractOptions(modalities=("audio",), audio_copies=2), jobs=1)
    dataset = read_dataset(tmp_path / "out")
    copies = [s for s in dataset.samples if s.labels.copy]
    assert len(copies) == 10
    assert {s.labels.split for s in copies} == {"train"}
    assert read_manifest(tmp_path / "out").counts == {"clips": {"train": 5, "valid": 1}}


def test_corpus_is_extracted_once_and_cached(clips: Path, tmp_path: Path) -> None:
    first = read_labelled([clips], AUDIO, cache=tmp_path / "cache", jobs=1)
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")}
    again = read_labelled([clips], AUDIO, cache=tmp_path / "cache", jobs=1)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")} == stamp
    assert [s.labels for s in first.samples] == [s.labels for s in again.samples]
    (clips / "0.wav").touch()
    read_labelled([clips], AUDIO, cache=tmp_path / "cache", jobs=1)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "nothing in it has changed"
    (clips / "0.wav").write_bytes((clips / "1.wav").read_bytes())
    read_labelled([clips], AUDIO, cache=tmp_path / "cache", jobs=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_shortened_texts_are_runs_of_their_words() -> None:
    random = np.random.default_rng(0)
    words = ["One,", "two;", "three", "four", "Five", "six", "seven", "eight", "nine", "ten."]
    plain = [w.strip(".,;").lower() for w in words]
    for _ in range(50):
        part = [w.strip(".,;").lower() for w in shortened(words, random)]
        assert 2 <= len(part) <= 10
        first = plain.index(part[0])
        assert plain[first : first + len(part)] == part
    assert shortened(["..."], random) == ["..."]
