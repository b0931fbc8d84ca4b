"""Where training computes. What needs an NVIDIA GPU is skipped, visibly, where there is none: `make test-gpu`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from mien.errors import ConfigError
from mien.models.data.corpora import Corpus
from mien.models.data.datasets import Dataset
from mien.models.training.calibration import calibrate
from mien.models.training.device import mixed_precision, multiplies_bf16, training_device
from mien.models.training.face import train_face
from mien.models.training.fusion import train_fusion
from mien.models.training.speech import measure_audio, pretrain_audio
from mien.models.training.text import READER
from tests.models.made_data import made_dataset
from tests.models.training import test_face, test_fusion, test_speech, test_text

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
base, corpora, speech = test_text.base, test_text.corpora, test_speech.speech


def test_auto_prefers_a_gpu() -> None:
    assert training_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert training_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("gpu", "unknown device gpu"), ("mps", "not on mps"), ("cuda:99", "CUDA GPU|there is no cuda:99")],
)
def test_missing_device_is_an_error(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        training_device(name)


def test_mixed_precision_multiplies_in_bf16() -> None:
    a = torch.ones(4, 4)
    for supported in (True, False):
        with mixed_precision(torch.device("cpu"), supported):
            assert (a @ a).dtype == (torch.bfloat16 if supported else torch.float32)
    with mixed_precision(torch.device("cpu")):
        assert ((a @ a).dtype == torch.bfloat16) == multiplies_bf16(torch.device("cpu"))


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.mark.gpu
@needs_gpu
def test_the_fusion_learns_on_a_gpu_and_one_seed_gives_one_result() -> None:
    device, dataset = training_device("cuda"), made_dataset()
    settings = msgspec.structs.replace(test_fusion.QUICK, steps=160, evaluate_every=40, bf16=None)
    on_gpu = train_fusion(dataset, settings, device=device)
    on_cpu = train_fusion(dataset, settings)
    assert {parameter.device.type for parameter in on_gpu.averaged.parameters()} == {"cpu"}
    assert min(each.loss for each in on_gpu.history) < on_gpu.history[0].loss
    assert min(each.loss for each in on_gpu.history) == pytest.approx(
        min(each.loss for each in on_cpu.history), rel=0.15
    )
    assert equal(on_gpu.averaged.state_dict(), train_fusion(dataset, settings, device=device).averaged.state_dict())
    assert all(0.1 <= temperature <= 20 for temperature in calibrate(on_gpu.averaged, dataset, settings))


@pytest.mark.gpu
@needs_gpu
def test_stopped_run_resumes_on_a_gpu(tmp_path: Path) -> None:
    device, dataset, state = training_device("cuda"), made_dataset(), tmp_path / "state"

    def stop(step: int, *_: object) -> None:
        if step == 12:
            raise KeyboardInterrupt

    uninterrupted = train_fusion(dataset, test_fusion.QUICK, device=device).averaged.state_dict()
    with pytest.raises(KeyboardInterrupt):
        train_fusion(dataset, test_fusion.QUICK, device=device, state=state, report=stop)
    assert state.exists()
    assert equal(
        uninterrupted, train_fusion(dataset, test_fusion.QUICK, device=device, state=state).averaged.state_dict()
    )


@pytest.mark.gpu
@needs_gpu
def test_a_voice_is_learned_on_a_gpu(speech: Dataset) -> None:
    device = training_device("cuda")
    first, second = (pretrain_audio(speech, test_speech.QUICK, test_speech.MODEL, device=device)
                     for _ in range(2))  # fmt: skip
    assert measure_audio(first, speech.split("valid"))["made"].uar >= 0.8
    assert equal(first.state_dict(), second.state_dict())


@pytest.mark.gpu
@needs_gpu
def test_a_text_encoder_is_tuned_on_a_gpu_teachers_too(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    options = test_text.OPTIONS
    options = type(options)(**{**vars(options), "epochs": 4, "teachers": test_text.teachers()})
    for name in ("one", "again"):
        work = tmp_path / name
        history = test_text.train(corpora, base, work / "out", work, options, device=training_device("cuda"))
        assert history[-1]["mosi.non0_acc2"] > 0.9
    assert (tmp_path / "one" / "out").read_bytes() == (tmp_path / "again" / "out").read_bytes()
    first, second = (load_file(tmp_path / name / READER) for name in ("one", "again"))
    assert equal(first, second)

    def stop(name: str, done: int, _: int) -> None:
        if (name, done) == ("text", 80):
            raise KeyboardInterrupt

    work = tmp_path / "parts"
    for stopped in (True, False):
        with pytest.raises(KeyboardInterrupt) if stopped else nullcontext():
            test_text.train(
                corpora, base, work / "out", work, options, report=stop if stopped else None,
                device=training_device("cuda"),
            )  # fmt: skip
    assert (work / "out").read_bytes() == (tmp_path / "one" / "out").read_bytes()


@pytest.mark.gpu
@needs_gpu
def test_faces_are_learned_on_a_gpu(tmp_path: Path) -> None:
    training = msgspec.structs.replace(test_face.TRAINING, bf16=None)
    for name in ("one", "again"):
        metrics = train_face(
            test_face.bars(256, 0), test_face.bars(64, 1), tmp_path / name, seed=1, config=test_face.SMALL,
            training=training, device=training_device("cuda"),
        )  # fmt: skip
        assert metrics["accuracy"] > 0.9
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
