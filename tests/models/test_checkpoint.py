"""Checkpoints carry their own configuration, and refuse what is not theirs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mien.errors import CheckpointError
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.checkpoint import check_extractors, load_checkpoint, save_checkpoint
from mien.models.cmmsf import CMMSF

SPECS = (
    ModalitySpec("text", 6, 0, 50, snapshot=True, extractor="words-1"),
    ModalitySpec("pulse", 4, 10, 50, extractor="pulse-2"),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = CMMSF(SPECS, ModelConfig(dim=8, stages=1))
    network.normalise({"pulse": (torch.full((4,), -1e6), torch.full((4,), 250.0))})
    network.fusion.temperature.fill_(1.5)
    save_checkpoint(tmp_path / "model.safetensors", network, figures={"uar": 0.5}, training={"seed": 1111})
    return tmp_path / "model.safetensors"


def rewrite(path: Path, change: dict[str, object]) -> None:
    header = json.loads(msgspec.json.encode(load_checkpoint(path).header))
    save_file(load_file(path), path, {"mien": json.dumps(header | change)})


def test_round_trip_keeps_configuration_statistics_and_weights(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    assert checkpoint.specs == SPECS
    assert checkpoint.config == ModelConfig(dim=8, stages=1).fitted(SPECS)
    assert checkpoint.header.figures == {"uar": 0.5}
    assert checkpoint.header.training == {"seed": 1111}
    assert checkpoint.header.temperature == (1.5, 1.5, 1.5)
    np.testing.assert_array_equal(checkpoint.normalisation("pulse")[0], np.full(4, -1e6, np.float32))
    torch.manual_seed(0)
    original, loaded = CMMSF(SPECS, ModelConfig(dim=8, stages=1)), checkpoint.network()
    assert loaded.fusion.temperature.tolist() == [1.5, 1.5, 1.5]
    weights = loaded.state_dict()
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach().half().float(), atol=0, rtol=0)
    assert not loaded.training


def test_weights_without_a_disagreement_temperature_predict_as_before(saved: Path) -> None:
    network = CMMSF(SPECS, ModelConfig(dim=8, stages=1, reliability=True)).eval()
    network.fusion.temperature.copy_(torch.tensor([0.5, 2.0, 0.7, 3.0, 1.0]))
    header = save_checkpoint(saved, network).header
    tensors = load_file(saved)
    older = tensors | {"fusion.temperature": tensors["fusion.temperature"][:-1].clone()}
    save_file(older, saved, {"mien": msgspec.json.encode(header).decode()})
    loaded = load_checkpoint(saved).network()
    assert loaded.fusion.temperature.tolist() == pytest.approx([0.5, 2.0, 0.7, 3.0, 1.0])


def test_the_same_weights_have_the_same_identity(saved: Path, tmp_path: Path) -> None:
    first = load_checkpoint(saved)
    again = save_checkpoint(
        tmp_path / "again.safetensors", first.network(), figures={"uar": 0.5}, training={"seed": 1111}
    )
    assert again.id == first.id
    assert first.id.startswith("cmmsf-")


def test_headers_with_unused_retired_options_are_read(saved: Path) -> None:
    before = load_checkpoint(saved)
    encoder = {"centre": 0, "tilt": False, "bands": 0, "planes": [], "front": [], "kernel": 1, "hidden": None}
    config = {"dim": 8, "stages": 1, "encoders": {"text": encoder, "pulse": encoder | {"kernel": 3}}}
    rewrite(saved, {"config": config})
    assert load_checkpoint(saved).config == before.config
    rewrite(saved, {"config": config | {"encoders": {"text": encoder | {"centre": 3}}}})
    with pytest.raises(CheckpointError, match=r"`centre`.*train again"):
        load_checkpoint(saved)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mien train"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 200, -100])
def test_a_damaged_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a mien checkpoint"):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mien-face"}, "holds `mien-face`"),
        ({"format": 99}, "format 99"),
        ({"labels": ["calm", "storm"]}, "calm, storm"),
        ({"config": {"dim": "wide"}}, "cannot be read"),
        ({"config": {"width": 3}}, "cannot be read"),
    ],
)
def test_metadata_of_another_kind_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_weights_that_do_not_fit_the_configuration_are_refused(saved: Path) -> None:
    rewrite(saved, {"config": {"dim": 16, "stages": 1}})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(saved).network()


def test_weights_that_are_not_finite_are_neither_written_nor_read(saved: Path, tmp_path: Path) -> None:
    network = load_checkpoint(saved).network()
    with torch.no_grad():
        network.fusion.sentiment.weight.fill_(1e6)  # beyond half precision
    with pytest.raises(CheckpointError, match="half precision"):
        save_checkpoint(tmp_path / "bad.safetensors", network)
    assert not (tmp_path / "bad.safetensors").exists()
    state = load_file(saved)
    state["fusion.sentiment.weight"].fill_(float("nan"))
    save_file(state, saved, {"mien": msgspec.json.encode(load_checkpoint(saved).header).decode()})
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(saved).network()


def test_rows_of_the_same_extractors_are_accepted(saved: Path) -> None:
    check_extractors(load_checkpoint(saved), SPECS)
    check_extractors(load_checkpoint(saved), SPECS[:1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModalitySpec("pulse", 4, 10, 50, extractor="pulse-3"), "extractor 'pulse-2'.*'pulse-3'"),
        (ModalitySpec("pulse", 5, 10, 50, extractor="pulse-2"), "dim 4"),
        (ModalitySpec("gesture", 4, 10, 50), "not trained on modality gesture"),
    ],
)
def test_rows_of_other_extractors_are_refused(saved: Path, spec: ModalitySpec, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_extractors(load_checkpoint(saved), [spec])
