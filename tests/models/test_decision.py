"""The decision between modalities, from what is answered to each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.decision import Decision
from tests.models.made_data import SPECS

NAMES = list(SPECS)
SURE = 6.0  # logit


def _answers(*said: tuple[int, float]) -> Tensor:
    """(1, M, 7): for each modality an emotion and its logit, those of the others 0."""
    answers = torch.zeros(1, len(said), 7)
    for modality, (emotion, logit) in enumerate(said):
        answers[0, modality, emotion] = logit
    return answers


def _decided(answers: Tensor, own: list[float], present: list[float], odd: float = -9.0) -> Tensor:
    decision = Decision(NAMES[: answers.shape[1]])
    decision.odd.fill_(odd)
    return torch.softmax(decision(answers, torch.tensor([own]), torch.tensor([present])), -1)[0]


def test_modalities_that_agree_are_surer_than_each() -> None:
    answers = _answers((2, 1.5), (2, 1.0))
    together = _decided(answers, [SURE, SURE], [1.0, 1.0])
    assert together.argmax() == 2
    assert together[2] > torch.softmax(answers, -1)[0, :, 2].max()


def test_an_unusable_or_missing_modality_does_not_count() -> None:
    answers = _answers((1, 2.0), (1, 1.0), (4, 5.0))
    without = _decided(answers[:, :2], [SURE, SURE], [1.0, 1.0])
    missing = _decided(answers, [SURE, SURE, SURE], [1.0, 1.0, 0.0])
    unusable = _decided(answers, [SURE, SURE, -SURE], [1.0, 1.0, 1.0])
    torch.testing.assert_close(missing, without, atol=1e-4, rtol=0)
    torch.testing.assert_close(unusable, without, atol=1e-2, rtol=0)
    assert _decided(answers, [SURE, SURE, SURE], [1.0, 1.0, 1.0]).argmax() == 4


@pytest.mark.parametrize("odd", range(3))
def test_two_against_one_win_the_more_often_one_is_the_odd_one(odd: int) -> None:
    said = [(3, 2.0), (3, 2.0), (3, 2.0)]
    said[odd] = (5, 5.0)
    answers, own, all_there = _answers(*said), [SURE] * 3, [1.0] * 3
    rarely, often = (_decided(answers, own, all_there, log) for log in (-9.0, 2.0))
    assert rarely.argmax() == 5
    assert often.argmax() == 3
    assert _decided(answers[:, :2], own[:2], all_there[:2], 2.0).equal(
        _decided(answers[:, :2], own[:2], all_there[:2], -9.0)
    ), "two cannot outvote each other"


def test_answers_are_those_to_each_modality_alone() -> None:
    torch.manual_seed(0)
    network = CMMSF(
        list(SPECS.values()), ModelConfig(dim=16, slots=10, stages=1, reliability=True, product=True)
    ).eval()
    features = {name: torch.randn(4, spec.steps, spec.dim) for name, spec in SPECS.items()}
    mask = {name: torch.ones(4, spec.steps) for name, spec in SPECS.items()}
    with torch.no_grad():
        fused = network.raw(features, mask)
        assert fused.answers is not None
        assert not torch.equal(fused.decision, fused.logits)
        for place, name in enumerate(network.names):
            alone = network.raw({name: features[name]}, {name: mask[name]})
            torch.testing.assert_close(fused.answers[:, place], alone.logits)
            assert torch.equal(alone.decision, alone.logits), "one modality is decided by the head"


def test_a_share_is_large_where_a_reliable_modality_says_what_the_answer_says() -> None:
    def shares(own: list[float], present: list[float]) -> list[float]:
        answers, answer = _answers((1, 2.0), (1, 2.0), (4, 2.0)), torch.softmax(_answers((1, 3.0)), -1)[0]
        found: list[float] = (
            Decision(NAMES).shares(answers, torch.tensor([own]), torch.tensor([present]), answer)[0].tolist()
        )
        assert sum(found) == pytest.approx(1.0)
        return found

    agreeing, alike, contradicting = shares([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert agreeing == pytest.approx(alike)
    assert contradicting < agreeing / 3
    unreliable, reliable, _ = shares([-2.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert unreliable < reliable / 3
    assert shares([1.0, 1.0, 1.0], [1.0, 0.0, 1.0])[1] == 0.0
    assert shares([-9.0, 1.0, 1.0], [1.0, 0.0, 0.0]) == [1.0, 0.0, 0.0]
