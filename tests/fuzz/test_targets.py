"""Every reader of foreign bytes, against damaged ones: refused or well-formed, and never anything else."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutate
from tests.fuzz.seeds import CORPUS, seeds
from tests.fuzz.targets import TARGETS, join

SEEDS = seeds()


def test_every_target_accepts_its_seeds() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    assert all(TARGETS[name](data) for name, inputs in SEEDS.items() for data in inputs)


@pytest.mark.parametrize("name", TARGETS)
def test_earlier_findings(name: str) -> None:
    """The corpus: inputs that reached something new, or were bugs once."""
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_damage(name: str, seed: int) -> None:
    # Not drawn as hypothesis' own chance: that needs subnormal numbers, which libraries of other tests switch off.
    chance = random.Random(seed)
    TARGETS[name](mutate(chance.choice(SEEDS[name]), chance))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_are_refused(name: str, frames: list[bytes]) -> None:
    taken = TARGETS[name](join(frames))
    assert not taken or name in ("config", "edges"), "chance makes no message"
