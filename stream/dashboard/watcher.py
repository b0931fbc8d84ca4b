"""A headless client of the dashboard's feed, for measurements and tests."""

from __future__ import annotations

import contextlib
import struct
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from mien.closing import Closing
from mien.messages import Float32


@dataclass(frozen=True, eq=False)
class Answer:
    """The data and picture (with its landmarks) of an answer; the latter two are empty if not new."""

    facts: dict[str, Any]
    landmarks: Float32
    jpeg: bytes


def decode_answer(data: bytes) -> Answer:
    """The parts of an answer, see `mien.stream.dashboard.feed`."""
    (length,) = struct.unpack_from("<I", data)
    facts: dict[str, Any] = msgspec.json.decode(data[4 : 4 + length])
    points = facts["picture"]["points"] if "picture" in facts else 0
    middle = 4 + length + 8 * points
    return Answer(facts, np.frombuffer(data, "<f4", 2 * points, 4 + length).reshape(-1, 2), data[middle:])


class Watcher(Closing):
    """A connection to the feed of the page at a URL."""

    def __init__(self, url: str) -> None:
        from websockets.sync.client import connect

        parts = urlsplit(url)
        origin: Any = f"{parts.scheme}://{parts.netloc}"
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(
            connect(f"ws://{parts.netloc}/feed", origin=origin, max_size=None, compression=None)
        )
        self._known = {"era": -1, "row": 0, "sound": 0, "words": -1, "edges": 0, "drawn": 0}

    def ask(self, **more: Any) -> None:
        """Ask for news; `more`: fields of the question."""
        self._socket.send(msgspec.json.encode(self._known | more), text=True)

    def take(self, timeout_s: float | None = 10.0) -> Answer:
        """Wait for the answer."""
        data = self._socket.recv(timeout_s)
        assert isinstance(data, bytes)
        answer = decode_answer(data)
        facts = answer.facts
        self._known |= {name: facts[name] for name in ("era", "row", "sound", "words")}
        self._known["edges"] |= "edges" in facts
        if "picture" in facts:
            self._known["drawn"] = facts["picture"]["t_us"]
        return answer

    def close(self) -> None:
        """Disconnect."""
        self._stack.close()


class Audience:
    """Concurrent watchers, each in its own thread.

    Args:
        url: of the page.
        count: how many read their answers.
        stalled: how many ask and never read.
    """

    def __init__(self, url: str, count: int, stalled: int = 0) -> None:
        self.answers = 0
        self._stopping = threading.Event()
        self._stalled = [Watcher(url) for _ in range(stalled)]
        for watcher in self._stalled:
            watcher.ask()
        self._threads = [threading.Thread(target=self._watch, args=(url,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Disconnect all."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
        for watcher in self._stalled:
            watcher.close()

    def _watch(self, url: str) -> None:
        with Watcher(url) as watcher:
            while not self._stopping.is_set():
                watcher.ask()
                watcher.take()
                self.answers += 1
