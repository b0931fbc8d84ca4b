"""Fixtures shared with other tests."""

from tests.stream.conftest import port

__all__ = ["port"]
