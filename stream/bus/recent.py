"""Messages with the last seconds of features, for a recorder that comes in the middle of a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mien.stream.bus.wire import MAX_PAYLOAD_BYTES, VERSION_BYTE, Frames, decode_feature_header, open_frames, parse

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode


def encode_recent(name: bytes, messages: Iterable[Frames]) -> Frames:
    """Features messages, oldest first, in one message; `name` is its topic."""
    return [name, VERSION_BYTE, _encode([(header, payload) for _, header, payload in messages])]


def decode_recent(frames: Sequence[bytes]) -> list[Frames]:
    """The features messages in such a message, oldest first, their headers checked.

    Raises:
        WireError: any deviation from the protocol.
    """
    pairs = parse(_decode, open_frames(frames)[1], MAX_PAYLOAD_BYTES)
    name = b"features/" + bytes(frames[0]).removeprefix(b"recent/")
    messages = [[name, header, inner] for header, inner in pairs]
    for message in messages:
        decode_feature_header(message)
    return messages
