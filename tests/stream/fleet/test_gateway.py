"""The gateway: one address, changing pools behind it, and explanations for silent sessions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mien.config import BusConfig
from mien.messages import Status
from mien.stream.bus.sockets import FLEET_SUBSCRIPTIONS, MAX_SUBSCRIPTIONS, Publisher, Receiver
from mien.stream.bus.wire import decode_status
from mien.stream.fleet.gateway import Gateway
from mien.stream.fleet.orders import GatewayOrder, GatewayReport
from tests.ports import free_ports
from tests.waiting import wait_for_items, wait_until

TOPIC = b"prediction/a/"
FLOOD = f"""
import sys, time, zmq
attacker = zmq.Context.instance().socket(zmq.XSUB)
attacker.setsockopt(zmq.SNDHWM, 0)
attacker.setsockopt(zmq.RECONNECT_IVL, -1)
attacker.connect(sys.argv[1])
for number in range({2 * FLEET_SUBSCRIPTIONS}):
    attacker.send(b"\\x01" + sys.argv[2].encode() + str(number).encode())
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    opened = Gateway("test", BusConfig(port=free_ports(1)), guarded=False)
    yield opened
    opened.close()


@pytest.fixture
def pools() -> Iterator[list[Publisher]]:
    most = 2 * FLEET_SUBSCRIPTIONS  # as a pool has
    opened = [Publisher("tcp://127.0.0.1:*", BusConfig(), most_subscriptions=most) for _ in range(2)]
    yield opened
    for pool in opened:
        pool.close()


def set_pools(
    gateway: Gateway, version: int, *pools: Publisher, gaps: dict[str, Status] | None = None
) -> GatewayReport:
    order = GatewayOrder(version, tuple(pool.address for pool in pools), gaps=gaps or {})
    return msgspec.json.decode(gateway.sync(msgspec.json.encode(order)), type=GatewayReport)


def wait_for(receiver: Receiver, pools: list[Publisher], expected: bytes, send: dict[int, bytes]) -> list[bytes]:
    """Payloads until the wanted one, while pools send theirs again and again."""
    got: list[bytes] = []

    def send_all() -> None:
        for number, payload in send.items():
            pools[number].send([TOPIC, b"\1", payload], keep=False)

    def has_arrived() -> bool:
        got.extend(frames[2] for frames in receiver.drain())
        return expected in got

    wait_until(has_arrived, repr(expected), meanwhile=send_all)
    return got


def test_pools_change_transparently_for_a_subscriber(gateway: Gateway, pools: list[Publisher]) -> None:
    receiver = Receiver(gateway.address, (b"prediction/",))
    try:
        assert set_pools(gateway, 1, pools[0]).pools == 1
        wait_for(receiver, pools, b"first", {0: b"first"})
        assert set_pools(gateway, 2, pools[1]).pools == 1
        list(receiver.drain(10_000))
        time.sleep(0.1)
        list(receiver.drain(10_000))
        # The dropped pool keeps sending, but nothing of it arrives.
        got = wait_for(receiver, pools, b"new", {0: b"old", 1: b"new"})
        assert b"old" not in got
    finally:
        receiver.close()


def test_late_subscribers_are_sent_the_last_value(gateway: Gateway, pools: list[Publisher]) -> None:
    set_pools(gateway, 1, pools[0])
    pools[0].send([TOPIC, b"\1", b"kept"])
    receiver = Receiver(gateway.address, (TOPIC,))
    try:
        got = wait_for_items(receiver.drain, meanwhile=pools[0].service)
        assert got[0][2] == b"kept"
    finally:
        receiver.close()


def test_a_gap_is_explained_to_late_subscribers_too(gateway: Gateway) -> None:
    status = Status(
        session="a", worker="inference", run=5, t_ns=time.time_ns(), state="failed", pid=0, last_error="a node is lost"
    )
    set_pools(gateway, 1, gaps={"a": status})
    receiver = Receiver(gateway.address, (b"status/a/",))
    try:
        got = wait_for_items(receiver.drain)
        assert decode_status(got[0]).last_error == "a node is lost"
    finally:
        receiver.close()
    set_pools(gateway, 2, gaps={})
    later = Receiver(gateway.address, (b"status/a/",))
    try:
        time.sleep(0.5)
        assert list(later.drain()) == []
    finally:
        later.close()


@pytest.mark.parametrize("prefix", ["prediction/", "clock/"])
def test_subscription_flood_is_stopped_and_others_reconnect(
    gateway: Gateway, pools: list[Publisher], prefix: str
) -> None:
    set_pools(gateway, 1, pools[0])
    receiver = Receiver(gateway.address, (TOPIC,))
    attacker = subprocess.Popen([sys.executable, "-c", FLOOD, gateway.address, prefix])
    try:
        wait_for(receiver, pools, b"before", {0: b"before"})
        wait_until(lambda: gateway.floods)
        attacker.kill()
        attacker.wait(60)
        list(receiver.drain(10_000))
        wait_for(receiver, pools, b"after", {0: b"after"})
        status = Status(session="a", worker="inference", run=5, t_ns=1, state="failed", pid=0, last_error="lost")
        set_pools(gateway, 2, pools[0], gaps={"a": status})
        listener = Receiver(gateway.address, (b"status/a/",))
        received = wait_for_items(listener.drain)
        listener.close()
        assert decode_status(received[0]).last_error == "lost"
        assert json.loads(gateway.sync(msgspec.json.encode(GatewayOrder(2))))["floods"] == gateway.floods
        wait_until(lambda: len(pools[0].subscriptions) <= MAX_SUBSCRIPTIONS, meanwhile=pools[0].service)
    finally:
        attacker.kill()
        attacker.wait()
        receiver.close()


def test_port_in_use_is_reported(gateway: Gateway) -> None:
    from mien.errors import BusError

    port = int(gateway.address.rpartition(":")[2])
    with pytest.raises(BusError, match=r"gateway\.port"):
        Gateway("test", BusConfig(port=port), guarded=False)
