"""Damage done to an input: bytes flipped, cut, doubled and put in, and fields set to absurd values."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import msgspec

from tests.fuzz.targets import join, split

_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xfe\xff", b"../", b"\x1b[2J", b"\xed\xa0\x80", b"9" * 40, b"[" * 50)
_ABSURD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**18, 0.5, -0.0, 1e308, -1e308,
    float("nan"), float("inf"), "", "../../etc/passwd", "a" * 70, "\x1b]0;x\x07", "\N{RIGHT-TO-LEFT OVERRIDE}", "é",
    b"", b"\xff" * 9, [], {},
    [[]], [0] * 5000, {"": ""}, {str(i): i for i in range(100)}, ["x", 0, 1, True, 0.5], "vision", "audio", "text",
)  # fmt: skip


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four injuries."""
    for _ in range(chance.randint(1, 4)):
        data = (_injure_fields if chance.random() < 0.4 else _injure_bytes)(data, chance)
    return data


def _injure_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    to = min(len(data), at + chance.choice((1, 2, 8, 64)))
    return chance.choice(
        (
            lambda: data[:at],
            lambda: data[:at] + data[to:],
            lambda: data[:at] + chance.choice(_BYTES) + data[at:],
            lambda: data[:at] + chance.choice(_BYTES) + data[to:],
            lambda: data[:at] + data[at:to] * 3 + data[to:],
            lambda: data[:at] + chance.randbytes(to - at) + data[to:],
            lambda: data[:at] + bytes(b ^ (1 << chance.randrange(8)) for b in data[at : at + 1]) + data[at + 1 :],
        )
    )()


def _injure_fields(data: bytes, chance: random.Random) -> bytes:
    """A field of a message's map replaced, at any depth, where the input is a message."""
    frames = split(data)
    if len(frames) != 3:
        return _injure_bytes(data, chance)
    with suppress(Exception):
        if len(frames[1]) > 1:
            fields = msgspec.msgpack.decode(frames[1][1:])
            return join([frames[0], frames[1][:1] + msgspec.msgpack.encode(_replaced(fields, chance)), frames[2]])
        fields = json.loads(frames[2])
        return join([*frames[:2], json.dumps(_replaced(fields, chance)).encode()])
    return _injure_bytes(data, chance)


def _replaced(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        return {**value, key: _replaced(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.6:
        at = chance.randrange(len(value))
        return [*value[:at], _replaced(value[at], chance), *value[at + 1 :]]
    return chance.choice(_ABSURD)
