"""What an inference process accepts from its workers' sockets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mien.clock import Clock
from mien.config import BusConfig, load_config
from mien.messages import Cue, FeatureWindow, Status
from mien.stream.bus.keyring import Keyring
from mien.stream.bus.poller import Poller
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import encode_features, encode_status
from mien.stream.inference.session import Inbox
from tests.waiting import wait_until


def test_resent_messages_are_no_error(port: int) -> None:
    """The words are kept and sent again to each new subscriber, and so also to those that have them already."""
    publisher = Publisher(f"tcp://127.0.0.1:{port + 3}", BusConfig(port=port))
    refused: list[tuple[str, str]] = []
    config = load_config(overrides={"bus.port": port})
    inbox = Inbox(config, ["text"], Clock(), lambda *why: refused.append(why), supervised=True, replayed=False)
    inbox.open(Poller())
    later = None
    got: list[int] = []

    def until(done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline_s
            publisher.service()
            got.extend(message.seq for message in take(inbox, "text") if isinstance(message, FeatureWindow))
            time.sleep(0.005)

    try:
        until(lambda: publisher.has_subscriber(b"features/default/text"))
        for seq in (0, 1):
            publisher.send(encode_features(words(seq)))
        until(lambda: got == [0, 1])
        later = Receiver(publisher.endpoint, (b"features/",), 64)
        until(lambda: list(later.drain()) != [])
        publisher.send(encode_features(words(2)))
        until(lambda: got[-1] == 2)
        assert got == [0, 1, 2]
        assert refused == []
    finally:
        inbox.close()
        publisher.close()
        if later is not None:
            later.close()


def test_inbox_tells_why_nothing_comes(tmp_path: Path, port: int) -> None:
    """One worker is of another session, one asks for keys."""
    Keyring(tmp_path).create()
    other = Publisher(f"tcp://127.0.0.1:{port + 1}", BusConfig())
    guarded = Publisher(f"tcp://127.0.0.1:{port + 2}", BusConfig(keys=str(tmp_path)))
    other.send(encode_status(Status(session="cam1", worker="video", run=1, t_ns=1, state="running", pid=1)))
    config, refused = load_config(overrides={"bus.port": port}), list[tuple[str, str]]()
    inbox = Inbox(
        config, ["video", "audio"], Clock(), lambda *why: refused.append(why), supervised=False, replayed=False
    )
    inbox.open(Poller())
    told: dict[str, str | None] = {}

    def serve() -> None:
        other.service()
        guarded.service()
        assert take(inbox, "video") == []
        told.update(inbox.tend())

    try:
        wait_until(lambda: told.get("video") and told.get("audio"), meanwhile=serve)
        assert "of session 'cam1', not 'default'" in str(told["video"])
        assert f"127.0.0.1:{port + 2} requires keys" in str(told["audio"])
        assert refused == []
    finally:
        inbox.close()
        other.close()
        guarded.close()


def take(inbox: Inbox, worker: str) -> list[FeatureWindow | Status | Cue]:
    """What a worker has sent that is news."""
    messages = (inbox.read(worker, frames, 1) for frames in inbox.receiver_of(worker).drain(100))
    return [message for message in messages if message is not None]


def words(seq: int) -> FeatureWindow:
    """A message of the text worker, without a word."""
    return FeatureWindow(
        session="default", modality="text", run=7, seq=seq, t_start_ns=seq, t_end_ns=seq + 1, extractor="t",
        values=np.zeros((0, 2), np.float32), valid=np.zeros(0, bool), times_ns=np.zeros(0, np.int64),
    )  # fmt: skip
