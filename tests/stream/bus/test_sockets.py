"""The bus, over real sockets: last values, slow readers, reconnection, ports."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from mien.config import BusConfig
from mien.errors import BusError
from mien.stream.bus import sockets
from mien.stream.bus.curve import is_loopback
from mien.stream.bus.sockets import Publisher, Receiver
from tests.waiting import wait_for_items, wait_until

CONFIG = BusConfig(high_water_mark=8)


def wait_for(condition: Callable[[], object], publisher: Publisher | None = None) -> None:
    """`wait_until`, while a publisher answers subscriptions."""
    wait_until(condition, meanwhile=publisher.service if publisher is not None else None)


def message(number: int, topic: bytes = b"prediction/default/") -> list[bytes]:
    return [topic, b"\x01", str(number).encode()]


def test_a_late_subscriber_gets_the_last_value_of_each_topic(port: int) -> None:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    for number in range(3):
        publisher.send(message(number))
        publisher.send(message(number * 10, b"status/default/video"))
    receiver = Receiver(publisher.endpoint, (b"",))
    got: dict[bytes, bytes] = {}

    def both() -> bool:
        got.update({frames[0]: frames[2] for frames in receiver.drain()})
        return len(got) == 2

    wait_until(both, meanwhile=publisher.service)
    assert got == {b"prediction/default/": b"2", b"status/default/video": b"20"}
    receiver.close()
    publisher.close()


def test_a_subscriber_gets_only_its_topics(port: int) -> None:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    publisher.send(message(1, b"prediction/other/"))
    publisher.send(message(2, b"prediction/mine/"))
    receiver = Receiver(publisher.endpoint, (b"prediction/mine/",))
    got = wait_for_items(receiver.drain, meanwhile=publisher.service)
    assert {frames[0] for frames in got} == {b"prediction/mine/"}
    receiver.close()
    publisher.close()


def test_a_stalled_subscriber_loses_messages_and_costs_the_publisher_nothing(port: int) -> None:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    stalled = Receiver(publisher.endpoint, (b"prediction/",), high_water_mark=4)
    reader = Receiver(publisher.endpoint, (b"prediction/",), high_water_mark=4)
    wait_until(lambda: publisher.subscriptions.get(b"prediction/") == 2, meanwhile=publisher.service)
    big = b"x" * 65_536
    got = 0
    for number in range(500):
        publisher.send([b"prediction/default/", str(number).encode(), big])
        got += len(list(reader.drain()))
        if number % 8 == 0:
            time.sleep(0.001)
    newest = [b"prediction/default/", b"newest", big]
    publisher.send(newest)

    wait_until(
        lambda: any(frames[1] == b"newest" for frames in reader.drain()), meanwhile=lambda: publisher.send(newest)
    )
    assert len(list(stalled.drain(1000))) < 500, "the queue of a subscriber that does not read is bounded"
    for endpoint in (stalled, reader):
        endpoint.close()
    publisher.close()


def test_lossless_waits_for_a_slow_subscriber(port: int) -> None:
    import threading

    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG, lossless=True)
    receiver = Receiver(publisher.endpoint, (b"features/",), high_water_mark=4)
    wait_until(lambda: publisher.has_subscriber(b"features/default/audio"))
    payload = b"x" * 32_768
    numbers: list[int] = []

    def read() -> None:
        while len(numbers) < 400:
            numbers.extend(int(frames[1]) for frames in receiver.drain(3))
            time.sleep(0.0005)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(400):
        publisher.send([b"features/default/audio", str(number).encode(), payload], keep=False)
    reader.join(30)
    assert numbers == list(range(400))
    assert publisher.dropped == 0
    receiver.close()
    publisher.close()


def test_lossless_takes_nothing_from_others_for_one_that_does_not_read(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as `mien watch` in a stopped terminal: the others got no message, and the publisher waited for each."""
    monkeypatch.setattr(sockets, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(sockets, "_MOST_QUEUED", 32)
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG, lossless=True)
    stopped = Receiver(publisher.endpoint, (b"prediction/",), high_water_mark=1)
    reader = Receiver(publisher.endpoint, (b"prediction/",), high_water_mark=4)
    wait_until(lambda: publisher.subscriptions.get(b"prediction/") == 2, meanwhile=publisher.service)
    for number in range(150):  # beyond what libzmq, the system and the longest queue hold
        publisher.send([b"prediction/default/", str(number).encode(), b"x" * 262_144], keep=False)
        assert [int(frames[1]) for frames in wait_for_items(reader.drain)] == [number]
    assert publisher.dropped == 0
    read = len(list(stopped.drain(1000)))
    assert 0 < read < 150
    for endpoint in (stopped, reader):
        endpoint.close()
    publisher.close()


def test_receiver_survives_a_publisher_restart(port: int) -> None:
    receiver = Receiver(f"tcp://127.0.0.1:{port}", (b"",))
    for number in range(2):
        publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
        publisher.send(message(number))
        got = wait_for_items(receiver.drain, meanwhile=publisher.service)
        assert got[-1][2] == str(number).encode()
        publisher.close()
    receiver.close()


def test_port_in_use_is_a_clear_error(port: int) -> None:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    with pytest.raises(BusError, match=r"in use.*--port"):
        Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    publisher.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "*", "example.org"])
def test_binding_beyond_this_machine_without_keys_is_refused_with_an_explanation(host: str, tmp_path: Path) -> None:
    with pytest.raises(BusError, match="this machine only"):
        Publisher(f"tcp://{host}:5999", BusConfig(host=host, keys=str(tmp_path)))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_many_subscriptions_do_not_multiply_messages(port: int) -> None:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    publisher.send(message(1))
    receiver = Receiver(publisher.endpoint, (b"",), high_water_mark=1000)
    wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
    began_s = time.monotonic()
    count = 0
    for _ in range(2000):
        receiver.socket.unsubscribe(b"")
        receiver.socket.subscribe(b"")
        publisher.service()
        count += len(list(receiver.drain()))
    assert count <= (time.monotonic() - began_s) / 0.02 + 2
    receiver.close()
    publisher.close()


def test_a_receiver_reconnects_after_another_program_used_the_port(port: int) -> None:
    """libzmq itself would never reconnect to a port on which a peer broke the protocol."""
    receiver = Receiver(f"tcp://127.0.0.1:{port}", (b"",))
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        stranger.settimeout(10)
        with stranger.accept()[0] as connection:
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
            connection.sendall(greeting)
            connection.settimeout(10)
            while connection.recv(4096):  # until it hangs up
                pass
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    publisher.send(message(1))
    wait_until(lambda: list(receiver.drain()), meanwhile=publisher.service)
    receiver.close()
    publisher.close()


def test_oversized_message_interrupts_its_sender_briefly(port: int) -> None:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    receiver = Receiver(publisher.endpoint, (b"",))
    wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
    publisher.send([b"features/default/vision", b"x" * (6 << 20)], keep=False)
    got: list[list[bytes]] = []

    def arrived() -> bool:
        publisher.send(message(1))
        got.extend(receiver.drain())
        return bool(got)

    wait_until(lambda: not publisher.subscriptions, meanwhile=publisher.service)
    wait_until(arrived, meanwhile=publisher.service)
    assert all(len(frames) == 3 for frames in got)
    receiver.close()
    publisher.close()


_FLOOD = """
import sys, time, zmq
attacker = zmq.Context.instance().socket(zmq.XSUB)
attacker.setsockopt(zmq.SNDHWM, 0)
attacker.setsockopt(zmq.RECONNECT_IVL, -1)
attacker.connect(sys.argv[1])
for number in range(100_000):
    attacker.send(b"\\x01" + sys.argv[2].encode() + str(number).encode() * 20)
time.sleep(60)
"""


@pytest.mark.parametrize("prefix", ["prediction/", "clock/"])
def test_a_flood_of_subscriptions_does_not_fill_the_memory(port: int, prefix: str) -> None:
    psutil = pytest.importorskip("psutil")
    publisher = Publisher(f"tcp://127.0.0.1:{port}", CONFIG)
    process = psutil.Process()
    before_mb = process.memory_info().rss / 2**20
    attacker = subprocess.Popen([sys.executable, "-c", _FLOOD, publisher.endpoint, prefix])
    try:
        wait_until(lambda: publisher.subscription_flood_resets, meanwhile=publisher.service)
        receiver = Receiver(publisher.endpoint, (b"prediction/",))

        def arrived() -> bool:
            publisher.send(message(1))
            return bool(list(receiver.drain()))

        wait_until(arrived, meanwhile=publisher.service)
        assert len(publisher.subscriptions) <= 1024
        # All of them take 466 MB; what is taken in before the flood is noticed, 3 to 11.
        assert process.memory_info().rss / 2**20 < before_mb + 100
    finally:
        attacker.kill()
        attacker.wait()
    receiver.close()
    publisher.close()


def test_receivers_that_were_not_closed_block_nothing(port: int) -> None:
    """They keep trying to connect: an unread event would stop every connection of this process."""
    for _ in range(100):
        Receiver(f"tcp://127.0.0.1:{port}", (b"",))  # its place in memory is the next one's
    time.sleep(0.2)
    publisher = Publisher("tcp://127.0.0.1:*", BusConfig())
    receiver = Receiver(publisher.socket.get_string(zmq.LAST_ENDPOINT), (b"",))
    wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
    receiver.close()
    receiver.close()
    assert receiver.socket.closed
    publisher.close()


def test_closing_a_receiver_while_it_connects_blocks_nothing(port: int) -> None:
    for _ in range(10):
        receivers = [Receiver(f"tcp://127.0.0.1:{port}", (b"",)) for _ in range(10)]
        time.sleep(0.055)  # about now they try again
        for receiver in receivers:
            receiver.close()
    publisher = Publisher("tcp://127.0.0.1:*", BusConfig())
    receiver = Receiver(publisher.socket.get_string(zmq.LAST_ENDPOINT), (b"",))
    wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
    receiver.close()
    publisher.close()
