"""Settings shared by all tests."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, settings

# An example's duration depends on the machine, not on what is tested.
settings.register_profile("mien", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mien")


@pytest.fixture(autouse=True)
def _denormal_numbers() -> None:
    """The first ONNX Runtime session in a process makes its thread flush denormal numbers, as configured. Whether that
    has happened must not depend on which tests ran before; hypothesis needs such numbers."""
    if "onnxruntime" in sys.modules:
        import torch

        torch.set_flush_denormal(False)
