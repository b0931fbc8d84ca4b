"""Waiting for messages on many sockets."""

from __future__ import annotations

from functools import partial

from mien.config import BusConfig
from mien.stream.bus.poller import Poller
from mien.stream.bus.sockets import Publisher, Receiver
from tests.waiting import wait_until


def test_socket_is_reported_until_read_even_without_its_signal(port: int) -> None:
    publishers = [Publisher(f"tcp://127.0.0.1:{port + number}", BusConfig()) for number in range(3)]
    receivers = [Receiver(publisher.address, (b"features/",)) for publisher in publishers]
    poller = Poller()
    try:
        for receiver in receivers:
            poller.register(receiver.socket)
        for publisher in publishers:
            wait_until(partial(publisher.has_subscriber, b"features/a"))
        assert poller.poll(0) == []
        publishers[1].send([b"features/a", b"1"])
        assert poller.poll(60_000) == poller.poll(0) == [receivers[1].socket]
        assert list(receivers[1].drain()) == [[b"features/a", b"1"]]
        assert poller.poll(0) == []
        # One that was read until it is empty need not be looked at before its signal comes again.
        states = []
        for limit in (0, 256):
            list(receivers[1].drain(limit))
            states.append(receivers[1].is_drained)
        assert states == [False, True]
        poller.trust(receivers[1].socket)
        publishers[1].send([b"features/a", b"4"])
        assert poller.poll(60_000) == [receivers[1].socket]
        assert list(receivers[1].drain()) == [[b"features/a", b"4"]]
        assert poller.poll(0) == []
        # Those that were not read come first, but not after they are closed.
        for publisher in publishers[:2]:
            publisher.send([b"features/a", b"5"])
        wait_until(lambda: len(poller.poll(0)) == 2)
        poller.put_off([receivers[1].socket])
        assert poller.poll(0) == [receivers[1].socket, receivers[0].socket]
        assert list(receivers[1].drain()) == [[b"features/a", b"5"]]
        poller.put_off([receivers[0].socket])
        poller.unregister(receivers[0].socket)
        assert poller.poll(0) == []
        # Any call on a socket may clear its signal.
        publishers[2].send([b"features/b", b"2"])
        wait_until(lambda: receivers[2].socket.poll(0))
        wait_until(lambda: poller.poll(0) == [receivers[2].socket])
        poller.unregister(receivers[2].socket)
        assert poller.poll(0) == []
        poller.register(receivers[2].socket)
        assert poller.poll(60_000) == [receivers[2].socket]
        assert list(receivers[2].drain()) == [[b"features/b", b"2"]]
    finally:
        poller.close()
        for receiver, publisher in zip(receivers, publishers, strict=True):
            receiver.close()
            publisher.close()
