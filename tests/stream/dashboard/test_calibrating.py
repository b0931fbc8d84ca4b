"""Whom the page may measure, and with which workers."""

from __future__ import annotations

import pytest

from mien.config import BusConfig, WorkersConfig
from mien.errors import BusError, ConfigError
from mien.stream.dashboard.calibrating import Calibrating, PeopleOrder
from mien.stream.dashboard.choosing import Choosing
from mien.stream.dashboard.collector import Collector


def calibrating(*, allowed: bool = True, **workers: str) -> Calibrating:
    """For a session without any messages."""
    bus = BusConfig(workers=WorkersConfig(**workers))
    collector = Collector(BusConfig(), None, 1.0)  # hears nothing, not even from there: it needs no keys
    return Calibrating(collector, bus, Choosing(collector, bus, allowed=allowed))


def test_beyond_this_machine_it_is_refused_unless_the_page_may_choose() -> None:
    with pytest.raises(BusError, match=r"dashboard\.control"):
        calibrating(allowed=False).carry_out(PeopleOrder("list"))


@pytest.mark.parametrize("act", ["begin", "keep"])
@pytest.mark.parametrize("workers", [("audio",), ("video", "audio")])
def test_where_a_worker_runs_on_another_machine_nobody_is_measured(act: str, workers: tuple[str, ...]) -> None:
    """Rejected before the local worker is instructed, with advice."""
    there = calibrating(audio="tcp://10.0.0.2:5562")
    with pytest.raises(BusError, match="the audio worker runs elsewhere: measure there, with mien calibrate ada"):
        there.carry_out(PeopleOrder(act, "ada", workers))  # type: ignore[arg-type]


def test_what_is_measured_has_to_be_there_and_chosen() -> None:
    with pytest.raises(BusError, match="no video worker is there"):
        calibrating().carry_out(PeopleOrder("begin", "ada", ("video",)))
    with pytest.raises(ConfigError, match="the face, the voice, or both"):
        calibrating().carry_out(PeopleOrder("begin", "ada"))
