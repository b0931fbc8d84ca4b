"""A fleet on one machine: its keys, its trust list, its gateway's list, its record of Ray."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
import zmq

from mien.errors import FleetError
from mien.stream.bus.keyring import Keyring, to_hex
from mien.stream.bus.ports import free_ports
from mien.stream.fleet import cluster
from mien.stream.fleet.node import NodeKeys
from mien.stream.fleet.orders import Trusted


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def public() -> str:
    return to_hex(zmq.curve_keypair()[0].decode())


def test_actors_of_a_machine_share_a_private_key_pair() -> None:
    first, second = NodeKeys("f"), NodeKeys("f")
    assert first.public == second.public
    assert NodeKeys("g").public != first.public
    assert stat.S_IMODE((Path(first.folder) / "identity.json").stat().st_mode) == 0o600


def test_only_named_machines_are_trusted() -> None:
    keys, one, two = NodeKeys("f"), public(), public()
    keys.trust({"node-a": Trusted(one, "10.0.0.1"), "node-b": Trusted(two, "10.0.0.2"), "own": Trusted(keys.public)})
    assert {name: peer.host for name, peer in Keyring(keys.folder).peers().items()} == {
        "node-a": "10.0.0.1", "node-b": "10.0.0.2",
    }  # fmt: skip
    keys.trust({"node-a": Trusted(two, "10.0.0.3")})
    peers = Keyring(keys.folder).peers()
    assert {name: (to_hex(peer.public), peer.host) for name, peer in peers.items()} == {"node-a": (two, "10.0.0.3")}


def test_subscribers_of_the_gateway_may_not_connect_to_workers() -> None:
    keys, door = NodeKeys("f"), NodeKeys("f", "gateway")
    assert door.public == keys.public
    door.trust({"wall": Trusted(public())})
    assert set(Keyring(door.folder).peers()) == {"wall"}
    assert not Keyring(keys.folder).peers()


def test_ports_are_free_and_in_a_row() -> None:
    first = free_ports("127.0.0.1", 12_000)
    assert 12_000 <= first < 13_000


def test_missing_fleet_is_reported_and_a_running_one_not_restarted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ray:
        address = f"127.0.0.1:{ray.getsockname()[1]}"
        cluster.remember("two", address, own=True)
        with pytest.raises(FleetError, match="runs already; first: mien fleet stop two"):
            cluster.check_free("two")
    cluster.check_free("two")
    with pytest.raises(FleetError, match=f"no Ray cluster answers at {address}"):
        cluster.join("two", address)
