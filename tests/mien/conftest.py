"""What tests here share with others."""

from tests.stream.conftest import port

__all__ = ["port"]
