"""Settings shared by all tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# An example's duration depends on the machine, not on what is tested.
settings.register_profile("mien", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mien")
E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a session outside of `tests/e2e`: `make test` looks for sessions there alone, and would miss it."""
    for item in items:
        if item.get_closest_marker("e2e") and E2E not in item.path.parents:
            raise pytest.UsageError(f"{item.nodeid} is marked e2e; move it to tests/e2e")


@pytest.fixture(autouse=True)
def _denormal_numbers() -> None:
    """The first ONNX Runtime session in a process makes its thread flush denormal numbers, as configured. Whether that
    has happened must not depend on which tests ran before; hypothesis needs such numbers."""
    if "onnxruntime" in sys.modules:
        import torch

        torch.set_flush_denormal(False)


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Signals have their usual effect here and in children, even where a shell ignores them in the background."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
