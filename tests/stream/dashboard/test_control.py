"""Whom the page may measure, and with which workers."""

from __future__ import annotations

import pytest

from mien.config import BusConfig, WorkersConfig
from mien.errors import BusError, ConfigError
from mien.stream.dashboard.collector import Collector
from mien.stream.dashboard.control import Control, PeopleRequest


def control(*, allowed: bool = True, **workers: str) -> Control:
    """For a session without any messages."""
    bus = BusConfig(workers=WorkersConfig(**workers))
    collector = Collector(BusConfig(), None, 1.0)  # receives nothing, so it needs no keys
    return Control(collector, bus, allowed=allowed)


def test_remote_calibration_needs_permission() -> None:
    with pytest.raises(BusError, match=r"dashboard\.control"):
        control(allowed=False).people(PeopleRequest("list"))


@pytest.mark.parametrize("act", ["begin", "keep"])
@pytest.mark.parametrize("workers", [("audio",), ("video", "audio")])
def test_remote_workers_cannot_be_calibrated(act: str, workers: tuple[str, ...]) -> None:
    """Rejected before the local worker is instructed, with advice."""
    there = control(audio="tcp://10.0.0.2:5562")
    with pytest.raises(BusError, match="the audio worker runs elsewhere: measure there, with mien calibrate ada"):
        there.people(PeopleRequest(act, "ada", workers))  # type: ignore[arg-type]


def test_measured_sources_must_exist_and_be_chosen() -> None:
    with pytest.raises(BusError, match="no video worker is there"):
        control().people(PeopleRequest("begin", "ada", ("video",)))
    with pytest.raises(ConfigError, match="the face, the voice, or both"):
        control().people(PeopleRequest("begin", "ada"))
