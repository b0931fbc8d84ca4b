from __future__ import annotations

import numpy as np
import pytest
import torch

from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.data.datasets import Dataset, Labels, RawRows, Sample, make_track
from mien.models.data.speakers import CORPUS, LASTING, NEUTRAL, NONE, RUNNING, Speakers
from mien.models.training.leave_out import leave_out
from mien.models.training.speech import SpeechTraining, measure_audio, pretrain_audio
from mien.models.voice.columns import F0, ROW, STATE
from tests.models.made_data import with_damage

SPEC = ModalitySpec(name="audio", dim=ROW, rate_hz=50, steps=250, extractor="made")
MODEL = ModelConfig(dim=16, stages=0)
QUICK = SpeechTraining(steps=120, batch=32, learning_rate=5e-3, dropout=0.0, mixup=0.0, average=0.9)
EMOTIONS = (0, 1, 3)


def sample(emotion: int, speaker: int, split: str, take: int, copy: int = 0, corpus: str = "made") -> Sample:
    """A clip whose emotion is where its states are, less where its speaker's are, and the pitch follows it."""
    count = int(np.random.default_rng([emotion, speaker, take, copy]).integers(40, 90))
    random = np.random.default_rng([emotion, speaker, take, copy, 1])
    values = random.standard_normal((count, ROW)).astype(np.float32)
    values[:, STATE.stop :] = 0.0
    values[:, F0] = 0.3 * emotion + 0.02 * random.standard_normal(count)
    directions = np.random.default_rng(0).standard_normal((7, STATE.stop - STATE.start))
    who = np.random.default_rng([speaker, len(corpus)]).integers(0, 7, 3)
    values[:, STATE] += (directions[emotion] + directions[who].sum(0)).astype(np.float32)
    valid = np.ones(count, np.bool_)
    valid[: int(random.integers(0, 10))] = False
    times_ns = np.arange(count, dtype=np.int64) * 20_000_000 + 10_000_000
    labels = Labels(
        id=f"{emotion}-{speaker}-{take}" + (f"~{copy}" if copy else ""),
        corpus=corpus,
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
        sample(emotion, speaker, "valid" if speaker >= 6 else "train", take, copy)
        for emotion in EMOTIONS
        for speaker in range(8)
        for take in range(6)
        for copy in ((0,) if speaker >= 6 else (0, 1))
    ]
    return Dataset({"audio": SPEC}, samples)


def test_unseen_speaker_is_recognised_with_a_reference(speech: Dataset) -> None:
    network = pretrain_audio(speech, QUICK, MODEL)
    valid = speech.split("valid")
    assert measure_audio(network, valid, NONE)["made"].count == 36
    assert measure_audio(network, valid, NONE)["made"].uar < 0.5  # chance is a third
    assert measure_audio(network, valid, RUNNING)["made"].uar > 0.6


def test_the_same_seed_gives_the_same_weights(speech: Dataset) -> None:
    few = SpeechTraining(steps=4, batch=8)
    first, second = (pretrain_audio(speech, few, MODEL).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_references_are_of_other_clips_of_the_same_speaker(speech: Dataset) -> None:
    moods = Speakers(speech.samples).moods()
    speakers, random = Speakers(speech.samples, moods), np.random.default_rng(0)
    item = speech.samples[0]
    assert speakers.draw(item, NONE, random) is None
    states = np.stack([s.tracks["audio"].values[s.tracks["audio"].mask > 0].mean(0) for s in speech.samples])
    for kind, emotions in ((RUNNING, set(EMOTIONS)), (LASTING, {item.emotion}), (NEUTRAL, {0})):
        reference = speakers.draw(item, kind, random, 10)
        assert reference is not None
        assert (reference.given > 0) == (kind == NEUTRAL)
        ours = [
            states[k]
            for k, s in enumerate(speech.samples)
            if s.labels.speaker == item.labels.speaker and not s.labels.copy and s.emotion in emotions and s is not item
        ]
        distance = np.linalg.norm(np.mean(ours, 0)[STATE] - reference.mean[STATE])
        assert distance < 0.5 * np.linalg.norm(states.mean(0)[STATE] - reference.mean[STATE])
    lasting, varied = (speakers.draw(item, kind, random, 5) for kind in (LASTING, RUNNING))
    assert lasting is not None
    assert varied is not None
    assert lasting.weight < 0.6 * varied.weight
    whole = speakers.draw(item, CORPUS, random)
    assert whole is not None
    assert whole.weight == 1.0


def test_too_little_speech_gives_no_running_reference() -> None:
    few = [sample(emotion, 0, "train", 0) for emotion in EMOTIONS]
    speakers = Speakers(few)
    assert speakers.draw(few[0], RUNNING, np.random.default_rng(0)) is None
    assert speakers.draw(few[1], NEUTRAL, np.random.default_rng(0)) is not None
    assert speakers.draw(few[0], NEUTRAL, np.random.default_rng(0)) is None  # its own is the only neutral one


def test_every_corpus_is_left_out_once_and_calibrated_by_the_others() -> None:
    samples = [
        sample(emotion, speaker, "train", take, corpus=corpus)
        for corpus in ("a", "bb", "ccc")
        for emotion in EMOTIONS
        for speaker in range(3)
        for take in range(5)
    ]
    steps: list[tuple[int, int]] = []
    settings = SpeechTraining(steps=40, batch=32, learning_rate=5e-3)
    made = leave_out(Dataset({"audio": SPEC}, samples), (), settings, MODEL, report=lambda *s: steps.append(s))
    assert steps[-1] == (120, 120)
    assert [each.corpus for each in made.of(NONE)] == ["a", "bb", "ccc"]
    assert all(each.metrics.count == 45 for each in made.judged)
    assert all(sum(each.predicted) == pytest.approx(1.0) for each in made.judged)
    assert 0.2 <= made.temperature <= 5.0
    network = pretrain_audio(Dataset({"audio": SPEC}, samples), settings, MODEL)
    assert made.hotter_than(network, samples) >= 1.0
    table = made.table()
    assert "| **mean of 3** | three neutral clips |" in table
    assert table.count("\n") == 1 + 5 * 4
    with pytest.raises(DataError, match="no emotional speech of d"):
        leave_out(Dataset({"audio": SPEC}, samples), ["d"], settings, MODEL)
    with pytest.raises(DataError, match="give several"):
        leave_out(Dataset({"audio": SPEC}, samples[:45]), (), settings, MODEL)


def test_damaged_copies_do_not_train_the_encoder_that_is_left_out() -> None:
    felt = [(emotion, take) for emotion in EMOTIONS for take in (0, 1)]
    samples = [sample(emotion, 0, "train", take, corpus=name) for name in "ab" for emotion, take in felt]
    settings, whole = SpeechTraining(steps=4, batch=8), Dataset({"audio": SPEC}, samples)
    tables = [leave_out(dataset, (), settings, MODEL).table() for dataset in (whole, with_damage(whole))]
    assert tables[0] == tables[1]


def test_empty_training_set_is_an_error(speech: Dataset) -> None:
    with pytest.raises(DataError, match="no speech"):
        pretrain_audio(Dataset(speech.specs, speech.split("valid")), QUICK, MODEL)
    with pytest.raises(DataError, match="no speech"):
        pretrain_audio(Dataset({}, []), QUICK, MODEL)
    other = ModalitySpec(name="audio", dim=69, rate_hz=50, steps=250, extractor="made")
    with pytest.raises(DataError, match="extract the corpora again"):
        pretrain_audio(Dataset({"audio": other}, speech.samples), QUICK, MODEL)
