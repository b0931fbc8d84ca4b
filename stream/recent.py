"""The last seconds of features, for a recorder that comes in the middle of a session.

A prediction is made from five seconds of rows. With those from before it came, a recorder's first prediction can be
made again from its file as well as any later one. A worker sends them, in one message, to whoever subscribes to
`recent/<session>/<modality>` by name. The bytes are in `stream/protocol.md`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from mien.clock import NS_PER_S
from mien.errors import WireError
from mien.stream.bus.wire import MAX_PAYLOAD_BYTES, VERSION_BYTE, Frames, decode_feature_header, open_frames, topic

KEPT_NS = 8 * NS_PER_S  # the window, and what an encoder's steps and late rows need beyond it

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode


class RecentFeatures:
    """What a worker has sent in the last seconds; at least its last message.

    Args:
        session, modality: of the messages.
    """

    def __init__(self, session: str, modality: str) -> None:
        self.topic = topic("recent", session, modality)
        self._kept: deque[tuple[int, Frames]] = deque()
        self._bytes = 0

    def add(self, frames: Frames, t_end_ns: int) -> None:
        """Keep a features message."""
        self._kept.append((t_end_ns, frames))
        self._bytes += sum(map(len, frames))
        while len(self._kept) > 1 and (self._kept[0][0] < t_end_ns - KEPT_NS or self._bytes > MAX_PAYLOAD_BYTES // 2):
            self._bytes -= sum(map(len, self._kept.popleft()[1]))

    def message(self) -> Frames | None:
        """All of them in one message; None before the first."""
        if not self._kept:
            return None
        return [self.topic, VERSION_BYTE, _encode([(header, payload) for _, (_, header, payload) in self._kept])]


def decode_recent(frames: Sequence[bytes]) -> list[Frames]:
    """The features messages in such a message, oldest first, their headers checked.

    Raises:
        WireError: any deviation from the protocol.
    """
    _, payload = open_frames(frames)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise WireError("oversized: payload")
    try:
        pairs = _decode(payload)
    except (msgspec.MsgspecError, RecursionError, OverflowError) as error:
        raise WireError(f"malformed: {error}") from None
    name = b"features/" + bytes(frames[0]).removeprefix(b"recent/")
    messages = [[name, header, inner] for header, inner in pairs]
    for message in messages:
        decode_feature_header(message)
    return messages
