"""Sessions on several inference processes: how many, and shared out evenly."""

from __future__ import annotations

import os

import pytest

from mien.config import load_config
from mien.errors import WorkerError
from mien.stream.bench.multi import measure_streams
from mien.stream.inference.loop import processes_for
from mien.stream.inference.shards import share_out


def test_sessions_are_distributed_evenly_and_deterministically() -> None:
    configs = [load_config(overrides={"session": f"camera-{number}"}) for number in range(10)]
    shares = share_out(configs, 4)
    assert sorted(len(share) for share in shares) == [2, 2, 3, 3]
    assert {config.session for share in shares for config in share} == {config.session for config in configs}
    assert share_out(configs[::-1], 4) == shares
    assert [len(share) for share in share_out(configs[:2], 4)] == [1, 1]


def test_processes_are_limited_by_sessions() -> None:
    def count(sessions: int, **overrides: object) -> int:
        return processes_for(load_config(overrides={k.replace("_", "."): v for k, v in overrides.items()}), sessions)

    assert count(8) == 1
    assert count(8, inference_processes=3) == 3
    assert count(2, inference_processes=3) == 2
    assert count(10_000, inference_processes="auto") == os.cpu_count()
    assert count(8, inference_processes=3, clip_fast=True) == 1


def test_an_inference_process_that_cannot_start_is_named() -> None:
    with pytest.raises(WorkerError, match="did not start"):
        measure_streams("", "no-such-engine", streams=1, seconds=1.0)
