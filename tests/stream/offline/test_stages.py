"""`mien train` and `mien eval` end to end, on a made MMSA pickle: no extractor is needed for those."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from mien.cli import app
from mien.cli._terminal import stage_progress
from mien.errors import ConfigError, DataError
from mien.files import sha256_of
from mien.models.checkpoint import load_checkpoint
from mien.models.evaluation.metrics import sentiment_metrics
from mien.models.weights import FILES, SHIPPED_FOLDER
from mien.stream.offline.plan import TrainPlan, load_plan, output_folder
from mien.stream.offline.stages import train, train_text_stage

TOML = """
data = ["{pickle}"]
work = "{work}"
out = "{out}"
stages = ["extract", "fusion"]
allow_pickle = true

[fusion]
steps = 30
batch = 16
evaluate_every = 15
learning_rate = 0.004

[fusion.model]
dim = 16
slots = 10
stages = 1
"""


def part(count: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    truth = random.uniform(-3, 3, count)
    truth[0] = 0.0
    made: dict[str, Any] = {"regression_labels": truth, "id": [f"{seed}-{k}" for k in range(count)]}
    for name, steps, dim in (("text", 10, 8), ("audio", 20, 5), ("vision", 120, 4)):
        made[name] = random.standard_normal((count, steps, dim)).astype(np.float32)
        made[name][:, :, 0] += truth[:, None]
    made["audio"][0, 0, 0] = -np.inf
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmsa")
    (folder / "mosi.pkl").write_bytes(pickle.dumps({"train": part(60, 0), "valid": part(20, 1), "test": part(20, 2)}))
    text = TOML.format(pickle=folder / "mosi.pkl", work=folder / "work", out=folder / "out")
    (folder / "train.toml").write_text(text)
    result = CliRunner().invoke(app, ["train", "--config", str(folder / "train.toml")])
    assert result.exit_code == 0, result.output
    return folder


def evaluated(folder: Path, *options: str, data: str = "mosi.pkl") -> dict[str, Any]:
    command = ["eval", str(folder / data), "--allow-pickle", "--json", "--checkpoint",
               str(folder / "out" / "cmmsf.safetensors")]  # fmt: skip
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    made: dict[str, Any] = msgspec.json.decode(result.stdout)  # refuses NaN, which Python's reader takes
    return made


def test_the_checkpoint_carries_the_dimensions_of_the_data(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "out" / "cmmsf.safetensors")
    assert {s.name: (s.dim, s.steps) for s in checkpoint.specs} == {
        "text": (8, 10), "audio": (5, 20), "vision": (4, 120)
    }  # fmt: skip
    assert checkpoint.config.encoders["vision"].stride > 1  # too long for a recurrence as it is


def test_run_without_a_folder_keeps_shipped_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {name: sha256_of(SHIPPED_FOLDER / name) for name in FILES.values()}
    monkeypatch.chdir(folder)
    text = re.sub("(?m)^(work|out) = .*$", "", (folder / "train.toml").read_text())
    (folder / "plain.toml").write_text(text.replace("steps = 30", "steps = 2"))
    result = CliRunner().invoke(app, ["train", "--config", "plain.toml"])
    assert result.exit_code == 0, result.output
    assert {name: sha256_of(SHIPPED_FOLDER / name) for name in FILES.values()} == shipped
    assert "mien run --checkpoint runs/train/weights" in result.stderr
    assert load_checkpoint(folder / "runs" / "train" / "weights").id == json.loads(result.stdout)["fusion"]["id"]


def test_shipped_folder_needs_an_explicit_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--replace-shipped"):
        output_folder(TrainPlan(out=str(SHIPPED_FOLDER)))
    with pytest.raises(ConfigError, match="not both"):
        output_folder(TrainPlan(out=str(tmp_path), replace_shipped=True))
    assert output_folder(TrainPlan(replace_shipped=True)) == SHIPPED_FOLDER
    assert output_folder(TrainPlan(work=str(tmp_path))) == tmp_path / "weights"


def test_eval_reports_the_test_split(folder: Path) -> None:
    made = evaluated(folder)["corpora"]["mosi"]
    assert made["split"] == "test"
    assert made["count"] == 20
    assert made["sentiment"]["correlation"] > 0.3
    assert set(made["sentiment"]) == set(sentiment_metrics([1.0], [1.0]).__dict__)


def test_a_figure_that_cannot_be_computed_is_null(folder: Path) -> None:
    same = part(4, 3) | {"regression_labels": np.ones(4)}
    (folder / "same").mkdir()
    (folder / "same" / "mosi.pkl").write_bytes(pickle.dumps({"test": same}))
    assert evaluated(folder, data="same/mosi.pkl")["corpora"]["mosi"]["sentiment"]["correlation"] is None


def test_the_table_has_four_decimals_and_the_published_numbers(folder: Path) -> None:
    command = [
        "eval",
        str(folder / "mosi.pkl"),
        "--allow-pickle",
        "--checkpoint",
        str(folder / "out" / "cmmsf.safetensors"),
    ]
    result = CliRunner().invoke(app, [*command, "--stream"], env={"COLUMNS": "60"})
    assert result.exit_code == 0, result.output
    accuracy = evaluated(folder)["corpora"]["mosi"]["sentiment"]["non0_accuracy"]
    assert f"{accuracy:.4f}" in result.output
    assert "Self-MM" in result.output
    assert "…" not in result.output, "a narrow terminal cuts no number"


def test_modalities_missing_steps_and_parts(folder: Path) -> None:
    made = evaluated(folder, "--modalities", "text,audio", "--missing", "0:0.2", "--stream", "--split", "valid")
    assert made["modalities"] == ["text", "audio"]
    mosi = made["corpora"]["mosi"]
    assert mosi["split"] == "valid"
    assert list(mosi["missing"]["rates"]) == ["0.0", "0.1", "0.2"]
    assert list(mosi["stream"]["shares"])[-1] == "1.0"
    assert mosi["gates"][2] == 0


def test_another_engine_gives_equal_scores(folder: Path) -> None:
    torch, onnx = evaluated(folder), evaluated(folder, "--engine", "onnx")
    assert onnx["corpora"]["mosi"]["sentiment"]["mae"] == pytest.approx(
        torch["corpora"]["mosi"]["sentiment"]["mae"], abs=1e-4
    )


def test_a_pickle_needs_permission(folder: Path) -> None:
    result = CliRunner().invoke(app, ["eval", str(folder / "mosi.pkl")])
    assert result.exit_code != 0
    assert "--allow-pickle" in str(result.exception)


def test_plans_are_checked(tmp_path: Path) -> None:
    (tmp_path / "mosi.csv").write_text("text,sentiment\nhm,1\n")
    (tmp_path / "plan.toml").write_text("[fusion]\nstep = 3")
    with pytest.raises(ConfigError, match=r"fusion.step.*did you mean `steps`"):
        load_plan(tmp_path / "plan.toml")
    for table, key in (
        ("fusion", "steps = 0"), ("fusion", "batch = 0"), ("fusion", "evaluate_every = 0"), ("speech", "batch = -1"),
        ("face", "epochs = 0"), ("extract", "limit = -5"), ("extract", "partial_texts = 7.0"), ("fusion", "seed = -1"),
    ):  # fmt: skip
        (tmp_path / "plan.toml").write_text(f"[{table}]\n{key}")
        with pytest.raises(ConfigError, match=rf"`{table}.{key.split()[0]}` in .*expected `\w+` >?<?="):
            load_plan(tmp_path / "plan.toml")
    for key, message in (
        ("modalities = ['adio']", "there is no modality 'adio'; did you mean `audio`"),
        ("splits = ['dev']", "there is no split 'dev'; known: train, valid, test"),
    ):
        (tmp_path / "plan.toml").write_text(f"[extract]\n{key}")
        with pytest.raises(ConfigError, match=message):
            load_plan(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match=r"table `text`: .*epochs"):
        train_text_stage(TrainPlan(data=(str(tmp_path / "mosi.csv"),), text={"epochs": 0}), None)
    with pytest.raises(ConfigError, match="unknown stage dance"):
        train(TrainPlan(data=("x",), stages=("dance",)))
    with pytest.raises(DataError, match="--data"):
        train(TrainPlan())


def test_one_run_at_a_time_uses_a_working_directory(folder: Path, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(load_plan(folder / "train.toml"), work=str(tmp_path))
    refused = []

    def again(*_: object) -> None:
        with pytest.raises(ConfigError, match="another `mien train` runs in"):
            train(plan)
        refused.append(True)

    train(plan, again)
    assert refused
    train(msgspec.structs.replace(plan, stages=("extract",)))


def test_progress_in_a_file_is_occasional_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_progress() as update:
        for done in range(1, 101):
            update("face", done, 100)
        update("text", 0, 5)
        update("text", 5, 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["face: 1/100", "face: 100/100", "text: 0/5", "text: 5/5"]


def test_the_shipped_plan_is_valid() -> None:
    plan = load_plan(Path(__file__).parents[3] / "configs" / "train.toml")
    assert len(plan.data) == 19
