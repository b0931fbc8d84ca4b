"""Ports for tests that bind them."""

from __future__ import annotations

import pytest

from tests.ports import free_ports


@pytest.fixture
def port() -> int:
    """The first of four free TCP ports in a row."""
    return free_ports()
