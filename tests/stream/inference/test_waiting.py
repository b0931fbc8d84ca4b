"""The inference process waits where a worker of a clip in full is ahead, and does not spin over its messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq

from mien.clock import NS_PER_S
from mien.engines.rings import Windows
from mien.stream.inference import loop as loop_module
from mien.stream.inference.loop import Loop


def test_sockets_of_workers_ahead_are_not_polled() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    sender, receiver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    sender.bind("inproc://ahead")
    receiver.connect("inproc://ahead")
    ahead = True
    loop = Loop(cast(Any, None), cast(Any, None), cast(Any, None), Windows({}))
    session = SimpleNamespace(mode=SimpleNamespace(holds_back=lambda worker: worker == "audio" and ahead))
    loop._sessions[0] = cast(Any, session)
    loop._worker_at[receiver] = 0, "audio"
    loop._poller.register(receiver)
    try:
        sender.send(b"rows")
        assert loop._poller.poll(60_000)
        loop._poll_only_due()
        assert loop._poller.poll(0) == []
        loop._poll_only_due()
        assert loop._poller.poll(0) == []
        ahead = False
        loop._poll_only_due()
        assert loop._poller.poll(60_000) == [receiver]
    finally:
        sender.close(0)
        receiver.close(0)


def test_silence_counts_only_until_all_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that wait unread are no silence: an overloaded process would predict without them, and read even less."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    sockets = [context.socket(zmq.PAIR) for _ in range(5)]
    published, *ends = sockets
    config = SimpleNamespace(clip=SimpleNamespace(fast=False))
    now_ns, asked_ns = [NS_PER_S], list[int]()
    control = SimpleNamespace(
        clock=SimpleNamespace(now_ns=lambda: now_ns[0]), assignment=SimpleNamespace(config=config)
    )
    loop = Loop(cast(Any, control), cast(Any, SimpleNamespace(socket=published)), cast(Any, None), Windows({}))
    mode = SimpleNamespace(due=asked_ns.append, wake_ns=lambda: 0)
    loop._sessions[0] = cast(Any, SimpleNamespace(mode=mode, is_on=True, receive=lambda _: False))
    for number, (sender, receiver) in enumerate(zip(ends[:2], ends[2:], strict=True)):
        sender.bind(f"inproc://unread-{number}")
        receiver.connect(f"inproc://unread-{number}")
        loop._worker_at[receiver] = 0, "video"
        loop._poller.register(receiver)
        sender.send(b"rows")

    def asked_after(limit_ns: int, at_ns: int) -> int:
        monkeypatch.setattr(loop_module, "_RECEIVE_NS", limit_ns)
        now_ns[0] = at_ns
        loop._receive(0)
        loop._wake_ns[0] = 0
        loop._predict()
        return asked_ns[-1]

    try:
        assert asked_after(60 * NS_PER_S, NS_PER_S) == NS_PER_S
        assert asked_after(-1, 2 * NS_PER_S) == NS_PER_S  # one socket was read, the other waits
        assert asked_after(-1, 9 * NS_PER_S) == 7 * NS_PER_S
        assert asked_after(60 * NS_PER_S, 10 * NS_PER_S) == 10 * NS_PER_S
    finally:
        for socket in sockets:
            socket.close(0)
