"""What holds for all tests."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, and nothing of what is tested.
settings.register_profile("mien", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mien")


@pytest.fixture(autouse=True)
def _denormal_numbers() -> None:
    """The first session of ONNX Runtime in a process makes the thread that opens it flush denormal numbers, as it is
    told to. Whether that has happened is not to depend on which tests ran before; hypothesis needs such numbers."""
    if "onnxruntime" in sys.modules:
        import torch

        torch.set_flush_denormal(False)
