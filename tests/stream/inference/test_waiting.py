"""The inference process waits where a worker of a clip in full is ahead, and does not spin over its messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import zmq

from mien.engines.rings import Windows
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
