"""The last seconds of features, for a recorder that comes in the middle of a session.

A prediction is made from five seconds of rows. With those from before it came, a recorder's first prediction can be
made again from its file as well as any later one. A worker sends them, in one message, to each subscription to
`recent/<session>/<modality>` by name. The bytes are in `stream/protocol.md`.
"""

from __future__ import annotations

from collections import deque

from mien.clock import NS_PER_S
from mien.stream.bus.recent import encode_recent
from mien.stream.bus.wire import MAX_PAYLOAD_BYTES, Frames, topic

KEPT_NS = 8 * NS_PER_S  # the window, and what an encoder's steps and late rows need beyond it


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
        return encode_recent(self.topic, (frames for _, frames in self._kept))
