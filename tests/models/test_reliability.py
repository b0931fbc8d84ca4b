"""What is learned about when a modality is right, on data that were made for it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from mien.errors import DataError
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Perturber, plain_batches
from mien.models.data.datasets import Dataset, Statistics
from mien.models.data.pairing import Group, Pairing, paired_set
from mien.models.evaluation.protocols import fusion
from mien.models.evaluation.scores import torch_model
from mien.models.evaluation.shares import auroc, damage_table, share_quality
from mien.models.training.calibration import calibrate
from mien.models.training.encodings import EncodedItems
from mien.models.training.fusion import train_fusion
from mien.models.training.fusion_settings import FusionTraining, ReliabilityFit
from mien.models.training.reliability import HeldOut, add_bias, correct_bias, fit_reliability, halves, surviving
from tests.models.made_data import SPECS, STRENGTHS, made_dataset, with_damage

NAMES = list(SPECS)
SETTINGS = FusionTraining(
    steps=240, batch=24, evaluate_every=80, warm_up=5, ema=0.9, valid_items=42, learning_rate=4e-3, bf16=False,
    model=ModelConfig(dim=16, slots=10, stages=1, dropout=0.1, complement="mean", reliability=True, product=True),
    reliability=ReliabilityFit(steps=120, damaged=0.5),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_groups() -> Iterator[None]:
    """Fewer groups for the decision than a training run draws: these data are simple."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mien.models.training.decision.DRAWN", 16)
        yield


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return with_damage(made_dataset(8, noise=1.5))


@pytest.fixture(scope="module")
def uncalibrated(dataset: Dataset) -> CMMSF:
    return train_fusion(dataset, SETTINGS).network.eval()


@pytest.fixture(scope="module")
def trained(dataset: Dataset, uncalibrated: CMMSF) -> CMMSF:
    network = copy.deepcopy(uncalibrated)
    calibrate(network, dataset, SETTINGS)
    return network


@pytest.fixture(scope="module")
def table(dataset: Dataset, trained: CMMSF) -> dict[str, Any]:
    valid = dataset.split("valid")
    return damage_table(torch_model(trained), valid, NAMES, size=84)


@pytest.mark.parametrize("name", NAMES)
def test_the_share_falls_with_damage(table: dict[str, Any], name: str) -> None:
    levels = table[name]["kinds"]["noise"]
    assert [level["strength"] for level in levels] == list(STRENGTHS)
    shares = [table[name]["whole"]["share"], *(level["share"] for level in levels)]
    assert all(before > after for before, after in itertools.pairwise(shares)), shares
    assert shares[-1] < shares[0] / 2


@pytest.mark.parametrize("name", NAMES)
def test_share_predicts_whether_a_modality_is_right(dataset: Dataset, trained: CMMSF, name: str) -> None:
    pairing, random = Pairing(dataset.split("valid")), np.random.default_rng(3)
    groups = [pairing.draw(NAMES, random, conflict=0.3, damaged=0.4) for _ in range(300)]
    quality = share_quality(torch_model(trained), groups, NAMES)[name]
    assert quality["auroc"] > 0.58
    assert quality["share_when_right"] > quality["share_when_wrong"]


def test_conflicting_damaged_modality_is_not_followed(table: dict[str, Any]) -> None:
    for name in NAMES:
        worst = table[name]["kinds"]["noise"][-1]
        assert worst["conflict"]["follows_the_odd_one"] < 0.2
        assert worst["company"]["accuracy"] > table[name]["without"]["accuracy"] - 0.1
        assert worst["alone"]["accuracy"] < table[name]["whole"]["alone"]["accuracy"]


def test_only_reliability_learns_from_the_validation_part(dataset: Dataset) -> None:
    fit = ReliabilityFit(steps=10, ranking=dict.fromkeys(NAMES, 1.0))
    settings = msgspec.structs.replace(SETTINGS, steps=8, evaluate_every=8, reliability=fit)
    network = train_fusion(dataset, settings).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    calibrate(network, dataset, settings)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "fusion.temperature" in changed
    assert any(name.startswith("fusion.reliability.own.") for name in changed)
    assert any(name.startswith("fusion.decision.") for name in changed)
    learned = ("fusion.temperature", "fusion.reliability.own.", "fusion.reliability.company.", "fusion.decision.")
    assert all(name.startswith(learned) for name in changed), changed
    again = train_fusion(dataset, settings).network
    calibrate(again, dataset, settings)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_ranking_makes_gating_vectors_tell_better_who_is_right(dataset: Dataset, uncalibrated: CMMSF) -> None:
    pairing, random = Pairing(dataset.split("valid")), np.random.default_rng(3)
    groups = [pairing.draw(NAMES, random, conflict=0.4, damaged=0.3) for _ in range(400)]
    blank = copy.deepcopy(uncalibrated)
    assert blank.fusion.reliability is not None
    torch.manual_seed(0)
    for layer in blank.fusion.reliability.company.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    quality = []
    for weight in (0.0, 4.0):
        fit = ReliabilityFit(steps=150, conflict=0.4, right=0.0, decision=0.0, ranking=dict.fromkeys(NAMES, weight))
        settings = msgspec.structs.replace(SETTINGS, reliability=fit)
        network, held_out = copy.deepcopy(blank), HeldOut(blank, dataset, settings)
        fit_reliability(network, held_out, held_out.items, settings)
        shares, alone = _shares_and_answers(network, groups)
        right = alone.argmax(-1) == torch.tensor([group.emotion for group in groups])[:, None]
        quality.append(np.mean([auroc(shares[:, k].numpy(), right[:, k].numpy()) for k in range(len(NAMES))]))
    assert quality[1] > quality[0] + 0.02, quality


@torch.no_grad()
def _shares_and_answers(network: CMMSF, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """Shares (n, M) of the gating vectors, and answers (n, M, 7) to each modality alone."""
    fused = [network.raw(batch.features, batch.mask) for batch in plain_batches(SPECS, groups)]
    return torch.cat([f.shares for f in fused]), torch.cat([f.answers for f in fused if f.answers is not None])


def test_the_fitted_decision_follows_the_odd_one_less_than_the_head(dataset: Dataset, trained: CMMSF) -> None:
    pairing, random = Pairing(dataset.split("valid")), np.random.default_rng(5)
    follows = {"head": 0, "decision": 0}
    for odd in NAMES:
        chances = {name: float(name == odd) for name in NAMES}
        groups = [pairing.draw(NAMES, random, conflict=1.0, odd=chances) for _ in range(150)]
        theirs = torch.tensor([group.members[odd].emotion for group in groups])
        with torch.no_grad():
            batches = [trained.raw(b.features, b.mask) for b in plain_batches(SPECS, groups)]
        for name, logits in (
            ("head", torch.cat([fused.logits for fused in batches])),
            ("decision", torch.cat([fused.decision for fused in batches])),
        ):
            follows[name] += int((logits.argmax(1) == theirs).sum())
    assert follows["decision"] < follows["head"], follows


def test_bias_is_undone_on_other_items(dataset: Dataset, trained: CMMSF) -> None:
    network, held_out = copy.deepcopy(trained), HeldOut(trained, dataset, SETTINGS)
    correct_bias(network, held_out, held_out.items, SETTINGS)
    add_bias(network, torch.tensor([1.0, -0.5, 0.0]))
    undone = correct_bias(network, held_out, held_out.items, SETTINGS)
    torch.testing.assert_close(undone, torch.tensor([-1.0, 0.5, 0.0]), atol=1e-3, rtol=0)


def test_halves_share_no_person_and_no_damaged_copy() -> None:
    valid = with_damage(made_dataset(2)).split("valid")
    for sample in valid[::9]:
        object.__setattr__(sample, "labels", msgspec.structs.replace(sample.labels, corpus="all", speaker="one"))
    parts = halves(valid)
    assert min(map(len, parts)) > len(valid) / 3
    people = [{s.labels.speaker or s.labels.id.partition("~")[0] for s in part} for part in parts]
    assert not people[0] & people[1]


def test_stronger_damage_leaves_less(dataset: Dataset, trained: CMMSF) -> None:
    valid = [s for s in dataset.split("valid") if s.emotion is not None]
    statistics = {name: Statistics(0, *trained.normalisation(name)) for name in NAMES}
    perturber = Perturber(SPECS, statistics, SETTINGS.perturbation)
    left = surviving(EncodedItems(trained, valid, perturber, 0, np.random.default_rng(0)), valid)
    for name in NAMES:
        levels = [left[name, "noise", strength] for strength in STRENGTHS]
        assert all(0 < after < before <= 1 for before, after in itertools.pairwise(levels)), levels
    assert len(left) == len(NAMES) * len(STRENGTHS)


def test_damaged_copies_are_excluded_from_clean_scores(dataset: Dataset) -> None:
    valid = dataset.split("valid")
    groups = paired_set(valid, NAMES, 70)
    assert all(member.labels.damage is None for group in groups for member in group.members.values())
    pairing, random = Pairing(valid), np.random.default_rng(0)
    drawn = [pairing.draw(NAMES, random, emotion=1, damaged=1.0) for _ in range(200)]
    spoilt = [[m for m in group.members.values() if m.labels.damage] for group in drawn]
    assert all(len(members) == 1 for members in spoilt)
    own = [members[0].emotion == 1 for members in spoilt]
    assert 0.4 < np.mean(own) < 0.75
    assert all(np.argmax(group.emotions) == 1 for group in drawn if group.emotions is not None)
    other = [pairing.draw(NAMES, random, emotion=1, damaged=1.0, damaged_wrong=1.0) for _ in range(200)]
    kept = [m.emotion == 1 for group in other for m in group.members.values() if m.labels.damage]
    assert len(kept) == 200
    assert np.mean(kept) < 0.3


def test_others_are_right_in_a_conflict() -> None:
    pairing, random = Pairing(made_dataset(2).split("train")), np.random.default_rng(0)
    for _ in range(50):
        group = pairing.draw(NAMES, random, emotion=2, conflict=1.0)
        assert sorted(member.emotion == 2 for member in group.members.values()) == [False, True, True]
        assert np.argmax(group.emotions or ()) == 2
    lone = {name: float(name == "vision") for name in NAMES}
    for _ in range(50):
        members = pairing.draw(NAMES, random, emotion=2, conflict=1.0, odd=lone).members
        assert [name for name, member in members.items() if member.emotion != 2] == ["vision"]
    two = pairing.draw(NAMES[:2], random, emotion=2, conflict=1.0)
    assert all(member.emotion == 2 for member in two.members.values())


def test_pair_figures_measure_share_quality(dataset: Dataset, trained: CMMSF) -> None:
    scales = {name: (np.zeros(SPECS[name].dim, np.float32), np.ones(SPECS[name].dim, np.float32)) for name in NAMES}
    made = fusion(torch_model(trained), dataset.split("valid"), NAMES, scales, size=70)
    assert set(made["shares"]["all agree"]) == set(NAMES)


def test_a_table_of_damage_needs_damage() -> None:
    samples = made_dataset(2).split("valid")
    network = CMMSF(list(SPECS.values()), SETTINGS.model).eval()
    with pytest.raises(DataError, match="damaged"):
        damage_table(torch_model(network), samples, NAMES)


def test_auroc_is_the_chance_of_ranking_higher() -> None:
    right = np.array([True, True, False, False, True])
    assert auroc(np.array([0.9, 0.8, 0.1, 0.2, 0.7]), right) == 1.0
    assert auroc(np.array([0.5] * 5), right) == 0.5
    score = np.array([0.3, 0.6, 0.3, 0.5, 0.1])
    pairs = [(a > b) + 0.5 * (a == b) for a in score[right] for b in score[~right]]
    assert auroc(score, right) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(score, np.ones(5, np.bool_)))
