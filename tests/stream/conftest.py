"""Ports for tests that bind them."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def port() -> int:
    """The first of four free TCP ports in a row."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        if first > 65_000:
            continue
        try:
            for offset in range(4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        return first
    raise RuntimeError("no four free ports in a row")
