from __future__ import annotations

import numpy as np
import pytest
import torch

from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.architecture import EncoderConfig, ModelConfig, PlaneLayer
from mien.models.augmentation import RowPerturbation
from mien.models.datasets import Dataset, Labels, RawRows, Sample, make_track
from mien.models.speech_training import SpeechTraining, calibrated_folds, measure_audio, pretrain_audio, speaker_folds

SPEC = ModalitySpec(name="audio", dim=69, rate_hz=50, steps=250, extractor="made")
MODEL = ModelConfig(
    dim=16,
    stages=0,
    encoders={"audio": EncoderConfig(centre=65, bands=64, planes=(PlaneLayer(4, 5, 2), PlaneLayer(8, 5, 5)))},
)
QUICK = SpeechTraining(
    steps=80,
    batch=16,
    learning_rate=5e-3,
    dropout=0.0,
    mixup=0.0,
    average=0.9,
    rows=RowPerturbation(window=90, tempo=0.05),
)


def sample(emotion: int, speaker: int, split: str, take: int, copy: int = 0) -> Sample:
    """A clip whose emotion is how fast its bands pulse, and whose speaker is how loud they are."""
    rng = np.random.default_rng([emotion, speaker, take, copy])
    count = int(rng.integers(40, 90))
    pulse = np.sin(2 * np.pi * (0.8 + 1.2 * emotion) * np.arange(count) / 50 + rng.uniform(0, 6))
    values = (speaker + 3.0 * pulse[:, None] + 0.3 * rng.standard_normal((count, 69))).astype(np.float32)
    valid = np.ones(count, np.bool_)
    valid[: int(rng.integers(0, 10))] = False
    times_ns = np.arange(count, dtype=np.int64) * 20_000_000 + 10_000_000
    labels = Labels(
        id=f"{emotion}-{speaker}-{take}" + (f"~{copy}" if copy else ""),
        corpus="made",
        split=split,
        speaker=str(speaker),
        emotions=tuple(float(index == emotion) for index in range(7)),
        duration_ns=count * 20_000_000,
        copy=copy > 0,
    )
    return Sample(labels, {"audio": make_track(SPEC, RawRows(values, valid, times_ns))})


@pytest.fixture(scope="module")
def speech() -> Dataset:
    samples = [
        sample(emotion, speaker, "valid" if speaker == 3 else "train", take, copy)
        for emotion in (0, 1, 3)
        for speaker in range(4)
        for take in range(4)
        for copy in ((0,) if speaker == 3 else (0, 1))
    ]
    return Dataset({"audio": SPEC}, samples)


def test_an_unheard_speaker_is_understood(speech: Dataset) -> None:
    trained = pretrain_audio(speech, QUICK, MODEL)
    assert trained.measures["made"].count == 12
    assert trained.measures["made"].uar >= 0.8  # chance is a third, and the speaker is louder than any other


def test_the_same_seed_gives_the_same_weights(speech: Dataset) -> None:
    few = SpeechTraining(steps=4, batch=8)
    first, second = (pretrain_audio(speech, few, MODEL).reader for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_measured_as_it_was_trained(speech: Dataset) -> None:
    trained = pretrain_audio(speech, SpeechTraining(steps=2, batch=4), MODEL)
    before = {name: metric.uar for name, metric in trained.measures.items()}
    again = measure_audio(trained.network, speech.split("valid"), SPEC)
    assert {name: metric.uar for name, metric in again.items()} == before


def test_folds_hold_out_every_speaker_once_and_never_a_copy(speech: Dataset) -> None:
    folds = speaker_folds(speech, 2)
    held = [sorted({s.labels.speaker for s in fold.split("valid")}) for fold in folds]
    assert held == [["0", "1"], ["2", "3"]]
    for fold, speakers in zip(folds, held, strict=True):
        assert not {s.labels.speaker for s in fold.split("train")} & set(speakers)
        assert not any(s.labels.copy for s in fold.split("valid"))


def test_nothing_to_train_on_is_an_error(speech: Dataset) -> None:
    with pytest.raises(DataError, match="no speech"):
        pretrain_audio(Dataset(speech.specs, speech.split("valid")), QUICK, MODEL)
    with pytest.raises(DataError, match="no speech"):
        pretrain_audio(Dataset({}, []), QUICK, MODEL)


def test_folds_calibrate_each_other() -> None:
    """Networks that are right seven times in ten, and three times as sure as they should be."""
    rng = np.random.default_rng(0)
    folds = []
    for speaker in range(3):
        clips = [sample(int(rng.choice((0, 1, 3))), speaker, "valid", take) for take in range(200)]
        shown = [s.emotion if rng.random() < 0.7 else int(rng.integers(7)) for s in clips]
        folds.append((clips, 9.0 * torch.nn.functional.one_hot(torch.tensor(shown), 7).float()))
    measured, curve = calibrated_folds(folds)["made"]
    assert measured.count == 600
    assert measured.ece < 0.06
    assert [part.count for part in curve] == [120] * 5
    assert np.mean([part.accuracy for part in curve]) == pytest.approx(measured.accuracy)
    logits = torch.cat([said for _, said in folds])
    assert float(torch.softmax(logits, 1).amax(1).mean()) - measured.accuracy > 0.2
    # What is said of a fold follows from the others' temperature and not from its own.
    sure = [(clips, said if fold else said * 5) for fold, (clips, said) in enumerate(folds)]
    assert calibrated_folds(sure)["made"][0].ece > 0.1
