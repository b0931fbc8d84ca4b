"""Training of the fusion: it learns, deterministically, and resumes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from mien.errors import DataError
from mien.messages import EMOTIONS
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Perturbation, Perturber, plain_batches, whole_windows
from mien.models.data.datasets import Dataset, Sample, make_statistics
from mien.models.data.pairing import Pairing, emotions_of_valence, paired_set, single
from mien.models.evaluation.protocols import fusion, robustness, streaming
from mien.models.evaluation.scores import Scores, figures, score, torch_model
from mien.models.fusion import Judgement, evidence
from mien.models.training.calibration import calibrate, fit_temperature, fit_temperatures
from mien.models.training.encodings import EncodedItems
from mien.models.training.fusion import train_fusion
from mien.models.training.fusion_settings import FusionTraining
from mien.models.training.loop import Evaluation
from mien.models.training.readers import load_readers, reader_networks
from mien.models.training.sampling import validation_batches
from tests.models.made_data import SPECS, made_dataset

QUICK = FusionTraining(
    steps=24, batch=16, evaluate_every=8, warm_up=5, ema=0.9, valid_items=42, learning_rate=4e-3, bf16=False,
    model=ModelConfig(dim=16, slots=10, stages=1, dropout=0.1),
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return made_dataset()


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> CMMSF:
    settings = msgspec.structs.replace(QUICK, steps=160, evaluate_every=40)
    network = train_fusion(dataset, settings).averaged
    calibrate(network, dataset, settings)
    return network


def weights(network: CMMSF) -> dict[str, torch.Tensor]:
    return network.state_dict()


def test_it_learns_each_modality_and_their_pairs(dataset: Dataset, trained: CMMSF) -> None:
    model, valid = torch_model(trained), dataset.split("valid")
    for name in SPECS:
        groups = [single(s) for s in valid if name in s.tracks]
        assert figures(groups, score(model, groups, [name]))["emotion"]["uar"] > 0.5
    groups = paired_set(valid, list(SPECS), 70)
    scores = score(model, groups, list(SPECS))
    assert figures(groups, scores)["emotion"]["uar"] > 0.7
    np.testing.assert_allclose(scores.gates.sum(1), 1, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(dataset: Dataset) -> None:
    first, again = train_fusion(dataset, QUICK), train_fusion(dataset, QUICK)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(first.averaged).values(), weights(again.averaged).values(), strict=True)
    )
    assert first.history == again.history
    other = train_fusion(dataset, msgspec.structs.replace(QUICK, seed=7))
    assert min(each.loss for each in other.history) != min(each.loss for each in first.history)


def test_resumed_run_equals_an_uninterrupted_one(dataset: Dataset, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(step: int, _: int, __: Evaluation | None) -> None:
        if step == 18:
            raise StoppedError

    whole = train_fusion(dataset, QUICK)
    with pytest.raises(StoppedError):
        train_fusion(dataset, QUICK, state=tmp_path / "state", report=stop)
    resumed = train_fusion(dataset, QUICK, state=tmp_path / "state")
    assert resumed.history == whole.history
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(whole.averaged).values(), weights(resumed.averaged).values(), strict=True)
    )
    assert not (tmp_path / "state").exists()


def test_validation_judges_what_several_modalities_decide(dataset: Dataset) -> None:
    """Not the head on their fused vector, which no user sees in a model that multiplies answers."""
    settings = msgspec.structs.replace(
        QUICK, steps=1, learning_rate=0.0, sentiment_weight=0.0, coarse_weight=0.0,
        model=msgspec.structs.replace(QUICK.model, reliability=True, product=True),
    )  # fmt: skip
    run = train_fusion(dataset, settings)
    valid = [s for s in dataset.split("valid") if not s.labels.copy]
    pairs = {kind: made for kind, made in validation_batches(valid, dataset.specs, settings) if "+" in kind}
    assert pairs
    for kind, batches in pairs.items():
        errors = {"decision": 0.0, "logits": 0.0}
        for batch in batches:
            with torch.no_grad():
                fused = run.averaged.raw(batch.features, batch.mask)
            for name in errors:
                known = batch.emotions.sum(1) > 0
                log_p = torch.log_softmax(getattr(fused, name)[known], 1)
                error = -(batch.emotions[known] * log_p).sum() / batch.emotions[known].sum()
                errors[name] += float(error) * len(batch.emotions) / sum(len(b.emotions) for b in batches)
        assert run.history[-1].figures[kind] == pytest.approx(errors["decision"], rel=1e-4)
        assert errors["decision"] != pytest.approx(errors["logits"], rel=1e-3)


def test_a_run_that_stops_early_reports_the_steps_it_did(dataset: Dataset) -> None:
    """Without a learning rate and an average nothing changes, so that no validation is better than the first."""
    progress: list[tuple[int, int]] = []
    still = msgspec.structs.replace(QUICK, steps=80, patience=2, learning_rate=0.0)
    train_fusion(dataset, still, report=lambda step, steps, _: progress.append((step, steps)))
    assert progress == [(n, 80) for n in range(1, 24)] + [(24, 24)]


def test_a_state_of_other_settings_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    def stop(step: int, _: int, __: Evaluation | None) -> None:
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_fusion(dataset, QUICK, state=tmp_path / "state", report=stop)
    with pytest.raises(DataError, match="other settings"):
        train_fusion(dataset, msgspec.structs.replace(QUICK, batch=8), state=tmp_path / "state")
    first, *others = dataset.samples
    relabelled = Sample(msgspec.structs.replace(first.labels, sentiment=-2.5), first.tracks)
    with pytest.raises(DataError, match="other settings or data"):
        train_fusion(Dataset(dataset.specs, [relabelled, *others]), QUICK, state=tmp_path / "state")


@pytest.mark.parametrize("name", SPECS)
def test_single_modality_equals_its_reader(name: str) -> None:
    torch.manual_seed(5)
    reader, whole = (CMMSF(specs, QUICK.model).eval() for specs in ([SPECS[name]], list(SPECS.values())))
    torch.nn.init.normal_(reader.fusion.sentiment.weight)
    found = load_readers(whole, {name: reader.state_dict()})
    assert "fusion.emotions.weight" in found
    assert not any(f"encoders.{other}." in key for other in SPECS if other != name for key in found)
    features = {name: torch.randn(4, SPECS[name].steps, SPECS[name].dim)}
    mask = {name: (torch.rand(4, SPECS[name].steps) < 0.7).float()}
    for before, after in zip(reader.raw(features, mask)[:3], whole.raw(features, mask)[:3], strict=True):
        torch.testing.assert_close(after, before)


def test_first_reader_decides_and_others_add_encoders() -> None:
    names = list(SPECS)[:2]
    readers = {name: CMMSF([SPECS[name]], QUICK.model).state_dict() for name in names}
    whole = CMMSF(list(SPECS.values()), QUICK.model)
    load_readers(whole, readers)
    assert torch.equal(whole.fusion.emotions.weight, readers[names[0]]["fusion.emotions.weight"])
    for name in names:
        own = {k: v for k, v in readers[name].items() if k.startswith("encoders.")}
        assert own
        assert all(torch.equal(whole.state_dict()[key], value) for key, value in own.items())


def test_readers_of_the_text_and_speech_stages_fit_a_model_that_multiplies_answers(dataset: Dataset) -> None:
    """Those stages train CM-MSF as configured, whose reliability and decision a single modality does not use."""
    name = next(iter(SPECS))
    model = msgspec.structs.replace(QUICK.model, reliability=True, product=True)
    reader = CMMSF([SPECS[name]], model).eval()
    [taught] = reader_networks(SPECS, model, {name: reader.state_dict()}, torch.device("cpu")).values()
    features = {name: torch.randn(4, SPECS[name].steps, SPECS[name].dim)}
    mask = {name: torch.ones(4, SPECS[name].steps)}
    torch.testing.assert_close(taught.raw(features, mask).logits, reader.raw(features, mask).logits)
    settings = msgspec.structs.replace(QUICK, steps=1, model=model, views=1, reader_steps=1)
    train_fusion(dataset, settings, readers={name: reader.state_dict()})


def test_a_reader_of_other_sizes_is_refused() -> None:
    name = next(iter(SPECS))
    other = CMMSF([SPECS[name]], msgspec.structs.replace(QUICK.model, dim=24)).state_dict()
    with pytest.raises(DataError, match=f"reader of {name} does not fit this model"):
        load_readers(CMMSF(list(SPECS.values()), QUICK.model), {name: other})


def test_single_modality_is_distilled_from_its_reader(dataset: Dataset) -> None:
    """The reader is of another opinion than the labels, so that forgetting shows."""
    turned = made_dataset(seed=3)
    for sample in turned.samples:
        shares = sample.labels.emotions or ()
        labels = msgspec.structs.replace(sample.labels, emotions=(*shares[3:], *shares[:3]))
        object.__setattr__(sample, "labels", labels)
    text = Dataset({"text": SPECS["text"]}, [s for s in turned.samples if "text" in s.tracks])
    reader = train_fusion(text, msgspec.structs.replace(QUICK, steps=80, evaluate_every=40)).averaged
    settings = msgspec.structs.replace(QUICK, steps=60, evaluate_every=30, trained_rate=1.0)
    groups = [single(s) for s in dataset.split("valid") if "text" in s.tracks]
    emotions = score(torch_model(reader), groups, ["text"]).emotions
    strayed = []
    for weight in (0.0, 10.0):
        held = msgspec.structs.replace(settings, keep_weight=weight)
        network = train_fusion(dataset, held, readers={"text": reader.state_dict()}).averaged
        now = score(torch_model(network), groups, ["text"]).emotions
        strayed.append(float(np.abs(now - emotions).sum(1).mean()))
    assert strayed[1] < 0.6 * strayed[0]


def test_validation_items_are_never_trained_on(dataset: Dataset) -> None:
    poisoned = Dataset(dataset.specs, [*dataset.split("train"), *dataset.split("valid")])
    settings = msgspec.structs.replace(QUICK, steps=8)
    clean = train_fusion(poisoned, settings).averaged
    for sample in poisoned.split("valid"):
        for track in sample.tracks.values():
            track.values[:] = 5.0
    try:
        dirty = train_fusion(poisoned, settings).averaged
    finally:
        dataset.samples[:] = made_dataset().samples
    assert all(torch.equal(a, b) for a, b in zip(weights(clean).values(), weights(dirty).values(), strict=True))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_split_is_an_error(dataset: Dataset, split: str) -> None:
    with pytest.raises(DataError, match="`train` and `valid`"):
        train_fusion(Dataset(dataset.specs, dataset.split(split)), QUICK)


def test_pairs_are_of_one_emotion_and_of_the_samples_given(dataset: Dataset) -> None:
    train = dataset.split("train")
    pairing, random = Pairing(train), np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        group = pairing.draw(list(SPECS), random)
        emotions = {s.emotion for s in group.members.values()}
        assert len(emotions) == 1
        assert all(s.labels.split == "train" for s in group.members.values())
        assert group.emotions is not None
        emotion = emotions.pop()
        assert emotion is not None
        assert group.emotions[emotion] == 1
        seen.add(group.emotions)
    assert len(seen) == 7


def test_pairs_follow_the_requested_emotion_frequencies(dataset: Dataset) -> None:
    pairing, random, names = Pairing(dataset.split("train")), np.random.default_rng(0), list(SPECS)
    shares = dict.fromkeys(EMOTIONS[2:], 0.0) | {EMOTIONS[0]: 3.0}
    drawn = [pairing.draw(names, random, shares=shares).emotions or () for _ in range(400)]
    counts = np.sum(drawn, 0)
    assert not counts[2:].any()
    assert counts[0] / counts[1] == pytest.approx(3.0, rel=0.3)


def test_a_sentence_goes_with_emotions_of_its_valence() -> None:
    named = [[EMOTIONS[e] for e in emotions_of_valence(s)] for s in (-2.0, 0.2, 1.0)]
    assert named == [["sad", "angry", "fear", "disgust"], ["neutral"], ["happy"]]


def test_training_windows_lose_parts_and_keep_at_least_something(dataset: Dataset) -> None:
    perturber = Perturber(SPECS, make_statistics(dataset.split("train"), SPECS), Perturbation())
    pairing, random = Pairing(dataset.split("train")), np.random.default_rng(0)
    groups = [pairing.draw(list(SPECS), random) for _ in range(200)]
    batch = perturber.batch(groups, random)
    observed = torch.stack([mask.any(1) for mask in batch.mask.values()])
    assert observed.any(0).all()
    assert 0.05 < 1 - observed.float().mean() < 0.25
    for name, features in batch.features.items():
        assert (features[batch.mask[name] == 0] == 0).all()
        assert torch.isfinite(features).all()


def test_long_clips_are_judged_by_several_windows(dataset: Dataset) -> None:
    sample = next(s for s in dataset.samples if "audio" in s.tracks)
    long = type(sample)(msgspec.structs.replace(sample.labels, duration_ns=11_000_000_000), sample.tracks)
    ends = [end for _, end in whole_windows(long, ["audio"])]
    assert ends == [5_000_000_000, 7_500_000_000, 10_000_000_000, 11_000_000_000]


def drawn(logits: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """One class for each row, as probable as its logits say."""
    return torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]


def test_temperature_undoes_the_overconfidence_of_each_modality() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(8000, 7, generator=random)
    targets = torch.nn.functional.one_hot(drawn(logits, random), 7).float()
    shares = torch.eye(2).repeat_interleave(4000, 0)
    temperature = fit_temperature(logits * torch.where(shares[:, :1] > 0, 2.5, 0.8), shares, targets)
    assert temperature.tolist() == pytest.approx([2.5, 0.8], rel=0.1)


def test_shared_weights_do_not_affect_single_modalities() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(12000, 7, generator=random)
    targets = torch.nn.functional.one_hot(drawn(logits, random), 7).float()
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]).repeat_interleave(4000, 0)
    shown = logits * torch.tensor([2.5, 0.8, 1.2]).repeat_interleave(4000)[:, None]
    temperature = fit_temperatures(shown, evidence(shares), targets, torch.ones(12000), 2)
    assert temperature[:2].tolist() == pytest.approx([2.5, 0.8], rel=0.1)
    # The two geometric means and the last one's share of a half make up what is left.
    assert float(torch.sqrt(temperature[:2].prod() * temperature[2])) == pytest.approx(1.2, rel=0.1)
    only = fit_temperatures(shown[8000:], evidence(shares[8000:]), targets[8000:], torch.ones(4000), 2)
    assert only[:2].tolist() == [1.0, 1.0]
    assert float(only[2]) == pytest.approx(1.44, rel=0.2)


def test_disagreeing_modalities_have_their_own_temperature() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(12000, 7, generator=random)
    targets = torch.nn.functional.one_hot(drawn(logits, random), 7).float()
    first = torch.nn.functional.one_hot(torch.arange(12000) % 7, 7) * 30.0
    second = torch.where(torch.arange(12000)[:, None] < 6000, first, first.roll(1, 1))
    unsure = torch.zeros(12000, 2)
    judgement = Judgement(torch.stack([first, second], 1), unsure, unsure, torch.ones(12000, 2))
    index = evidence(torch.full((12000, 2), 0.5), judgement)
    torch.testing.assert_close(index[::6000, 4], torch.tensor([0.0, 1.0]))
    shown = logits * torch.where(torch.arange(12000) < 6000, 0.8, 2.4)[:, None]
    temperature = fit_temperatures(shown, index, targets, torch.ones(12000), 2)
    assert float(temperature[2].sqrt()) == pytest.approx(0.8, rel=0.1)
    assert float(temperature[4]) == pytest.approx(3.0, rel=0.1)
    alone = evidence(torch.tensor([[1.0, 0.0]]), Judgement(torch.randn(1, 2, 7), *(torch.ones(1, 2),) * 3))
    torch.testing.assert_close(alone, torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]))


def test_encoders_stay_frozen_with_views(dataset: Dataset) -> None:
    settings = msgspec.structs.replace(QUICK, views=2, reader_steps=12)
    torch.manual_seed(1)
    reader = CMMSF([SPECS["text"]], settings.model).eval()
    reader.normalise({"text": (torch.full((10,), 0.3), torch.full((10,), 1.7))})
    trained = train_fusion(dataset, settings, readers={"text": reader.state_dict()}).averaged
    before, after = reader.state_dict(), weights(trained)
    for name, tensor in before.items():
        if name.startswith("encoders."):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["fusion.emotions.weight"], before["fusion.emotions.weight"])
    again = train_fusion(dataset, settings, readers={"text": reader.state_dict()}).averaged
    assert all(torch.equal(a, b) for a, b in zip(after.values(), weights(again).values(), strict=True))


def test_cached_encodings_equal_fresh_ones(dataset: Dataset) -> None:
    torch.manual_seed(2)
    network = CMMSF(list(SPECS.values()), QUICK.model).eval()
    statistics = make_statistics(dataset.split("train"), SPECS)
    still = Perturbation(cut_end=0, cut_start=0, tail=0, block=0, columns=0, noise=0, drop=0, jitter=0)
    items = dataset.split("train")[:60]
    encoded = EncodedItems(network, items, Perturber(SPECS, statistics, still), 1, np.random.default_rng(0))
    groups = paired_set(items, list(SPECS), 12)
    batch = encoded.batch(groups, np.random.default_rng(1))
    plain = plain_batches(SPECS, groups)[0]
    with torch.no_grad():
        for a, b in zip(network.raw_of(batch.encodings)[:4], network.raw(plain.features, plain.mask)[:4], strict=True):
            torch.testing.assert_close(a, b, atol=5e-3, rtol=0)  # kept in half precision
    assert torch.equal(batch.emotions, plain.emotions)
    for name in SPECS:
        assert torch.equal(batch.own[name], plain.own[name])


def test_joined_corpora_are_evaluated_as_one(dataset: Dataset, trained: CMMSF) -> None:
    model, valid = torch_model(trained), dataset.split("valid")
    groups = [[single(s) for s in valid if name in s.tracks][: 20 + 10 * n] for n, name in enumerate(SPECS)]
    scores = [score(model, part, list(SPECS)) for part in groups]
    apart = [figures(part, emotions)["emotion"] for part, emotions in zip(groups, scores, strict=True)]
    together = figures([g for part in groups for g in part], Scores.joined(scores))["emotion"]
    assert together["count"] == 20 + 30 + 40
    assert together["accuracy"] == pytest.approx(sum(m["accuracy"] * m["count"] for m in apart) / 90)
    assert together["confusion"] == np.sum([m["confusion"] for m in apart], 0).tolist()


def test_protocols_report_their_figures(dataset: Dataset, trained: CMMSF) -> None:
    model, valid, names = torch_model(trained), dataset.split("valid"), list(SPECS)
    texts = [s for s in valid if "text" in s.tracks]
    groups = [single(s) for s in texts]
    robust = robustness(model, groups, names, [0.0, 0.9])
    assert robust["rates"]["0.0"]["emotion"]["uar"] >= robust["rates"]["0.9"]["emotion"]["uar"]
    assert robust["mean"]["emotion"]["uar"] == pytest.approx(
        np.mean([robust["rates"][r]["emotion"]["uar"] for r in ("0.0", "0.9")])
    )
    live = streaming(model, texts, names)
    whole = figures(groups, score(model, groups, names))
    assert live["shares"]["1.0"]["emotion"]["uar"] == pytest.approx(whole["emotion"]["uar"])
    assert next(iter(live["shares"])) == "0.1"
    scales = {n: (np.array(s.mean, np.float32), np.array(s.std, np.float32))
              for n, s in make_statistics(dataset.split("train"), SPECS).items()}  # fmt: skip
    made = fusion(model, valid, names, scales, size=70)
    assert set(made["subsets"]) == {
        "text", "audio", "vision", "text+audio", "text+vision", "audio+vision", "text+audio+vision"
    }  # fmt: skip
    assert made["subsets"]["text"]["gates"] == pytest.approx([1, 0, 0])
    assert made["gain_over_best_single"] == pytest.approx(
        made["subsets"]["text+audio+vision"]["uar"] - max(made["subsets"][n]["uar"] for n in names)
    )
