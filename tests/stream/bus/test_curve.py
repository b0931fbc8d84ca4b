"""Guarded sockets, over real ones: an unlisted host receives nothing and can send nothing."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import zmq

from mien.config import BusConfig
from mien.errors import BusError, KeysError
from mien.stream.bus.curve import host_of, is_guarded
from mien.stream.bus.keyring import Keyring, to_hex
from mien.stream.bus.sockets import Publisher, Receiver
from tests.waiting import wait_until

MESSAGE = [b"prediction/default/", b"\x01", b"{}"]


@pytest.fixture
def server(tmp_path: Path) -> Keyring:
    """Keys of the publishing machine, which knows only itself."""
    keyring = Keyring(tmp_path / "server")
    keyring.create()
    return keyring


def client(folder: Path, server: Keyring) -> Keyring:
    """Keys of a machine that knows the server, but not vice versa."""
    keyring = Keyring(folder)
    keyring.create()
    keyring.add("server", server.identity().public, host="127.0.0.1")
    return keyring


def publisher_of(server: Keyring, port: int) -> Publisher:
    return Publisher(f"tcp://127.0.0.1:{port}", BusConfig(keys=str(server.folder)))


def arrives(publisher: Publisher, receiver: Receiver, within_s: float = 60.0) -> bool:
    """Whether published messages arrive, within far more time than needed on a busy machine."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        publisher.send(MESSAGE)
        if any(frames == MESSAGE for frames in receiver.drain()):
            return True
        time.sleep(0.01)
    return False


def test_only_listed_machines_receive(tmp_path: Path, server: Keyring, port: int) -> None:
    known, unknown = client(tmp_path / "known", server), client(tmp_path / "unknown", server)
    server.add("known", known.identity().public)
    publisher = publisher_of(server, port)
    receivers = [Receiver(publisher.endpoint, (b"",), keys=keyring.folder) for keyring in (known, unknown)]
    assert arrives(publisher, receivers[0])
    assert not arrives(publisher, receivers[1], 1)
    assert publisher.refused >= 1
    assert sum(publisher.subscriptions.values()) == 1
    publisher.close()
    for receiver in receivers:
        receiver.close()


def test_client_without_keys_cannot_receive_or_send(server: Keyring, port: int) -> None:
    publisher = publisher_of(server, port)
    plain: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XSUB)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(publisher.endpoint)
    own = Receiver(publisher.endpoint, (b"prediction/",), keys=server.folder)  # this machine's own process
    assert arrives(publisher, own)
    plain.send(b"\x01features/")
    for _ in range(100):
        publisher.send(MESSAGE)
        time.sleep(0.01)
    assert set(publisher.subscriptions) == {b"prediction/"}
    assert plain.poll(0) == 0
    plain.close()
    for endpoint in (own, publisher):
        endpoint.close()


def test_unknown_publisher_is_ignored(tmp_path: Path, server: Keyring, port: int) -> None:
    """An impostor has taken the port, with its own keys and everybody on its list."""
    known = client(tmp_path / "known", server)
    impostor = Keyring(tmp_path / "impostor")
    impostor.create()
    impostor.add("known", known.identity().public)
    receiver = Receiver(f"tcp://127.0.0.1:{port}", (b"",), keys=known.folder)
    publisher = publisher_of(impostor, port)
    assert not arrives(publisher, receiver, 1)
    publisher.close()
    plain = Publisher(f"tcp://127.0.0.1:{port}", BusConfig())
    assert not arrives(plain, receiver, 1)
    plain.close()
    server.add("known", known.identity().public)
    real = publisher_of(server, port)
    assert arrives(real, receiver)
    for endpoint in (receiver, real):
        endpoint.close()


def test_revoked_machine_is_disconnected_and_others_reconnect(tmp_path: Path, server: Keyring, port: int) -> None:
    leaving, staying = client(tmp_path / "leaving", server), client(tmp_path / "staying", server)
    server.add("leaving", leaving.identity().public)
    server.add("staying", staying.identity().public)
    publisher = publisher_of(server, port)
    gone, stays = (Receiver(publisher.endpoint, (b"",), keys=keyring.folder) for keyring in (leaving, staying))
    assert arrives(publisher, gone)
    assert arrives(publisher, stays)
    Keyring(server.folder).revoke("leaving")  # as another process does it
    wait_until(lambda: publisher.refused, meanwhile=lambda: publisher.send(MESSAGE))
    list(gone.drain(10_000))
    assert not arrives(publisher, gone, 1)
    assert arrives(publisher, stays)
    server.add("leaving", leaving.identity().public)
    assert arrives(publisher, gone), "and it can be admitted again"
    for endpoint in (gone, stays, publisher):
        endpoint.close()


def test_revoked_publisher_is_ignored(tmp_path: Path, server: Keyring, port: int) -> None:
    known = client(tmp_path / "known", server)
    server.add("known", known.identity().public)
    publisher = publisher_of(server, port)
    receiver = Receiver(publisher.endpoint, (b"",), keys=known.folder)
    assert arrives(publisher, receiver)
    Keyring(known.folder).revoke("server")
    wait_until(lambda: not arrives(publisher, receiver, 0.5))
    with pytest.raises(KeysError, match=r"mien keys add NAME KEY --host 10\.9\.8\.7"):
        Receiver("tcp://10.9.8.7:5560", (b"",), keys=known.folder)
    for endpoint in (receiver, publisher):
        endpoint.close()


def test_keys_that_are_replaced_are_used_without_a_restart(tmp_path: Path, server: Keyring, port: int) -> None:
    known = client(tmp_path / "known", server)
    server.add("known", known.identity().public)
    publisher = publisher_of(server, port)
    own, other = (Receiver(publisher.endpoint, (b"",), keys=keyring.folder) for keyring in (server, known))
    assert arrives(publisher, own)
    assert arrives(publisher, other)
    new = Keyring(server.folder).create(force=True).public  # as `mien keys new --force` does it
    later = Receiver(publisher.endpoint, (b"",), keys=server.folder)
    assert arrives(publisher, later), "a new process of this machine"
    assert arrives(publisher, own)
    wait_until(lambda: "mien keys list" in (other.trouble or ""), meanwhile=lambda: arrives(publisher, other, 0.1))
    Keyring(known.folder).revoke("server")
    Keyring(known.folder).add("server", new, host="127.0.0.1")
    assert arrives(publisher, other)
    mine = Keyring(known.folder).create(force=True).public
    Keyring(server.folder).revoke("known")
    wait_until(lambda: other.trouble, meanwhile=lambda: arrives(publisher, other, 0.1))
    Keyring(server.folder).add("known", mine)
    assert arrives(publisher, other)
    for endpoint in (own, later, other, publisher):
        endpoint.close()


@pytest.mark.parametrize(
    ("client_keys", "server_keys", "host", "expected"),
    [
        ("known", True, "127.0.0.1", "mien keys add NAME "),
        ("", True, "127.0.0.1", "requires keys"),
        ("mistaken", True, "127.0.0.1", "compare `mien keys list`"),
        ("known", False, "127.0.0.1", "uses no keys"),
        ("known", True, "camera.invalid", "camera.invalid has no known address"),
    ],
)
def test_refused_connections_say_what_to_do(
    tmp_path: Path, server: Keyring, port: int, client_keys: str, server_keys: bool, host: str, expected: str
) -> None:
    known, mistaken = client(tmp_path / "known", server), Keyring(tmp_path / "mistaken")
    known.add("camera", server.identity().public, host="camera.invalid")
    mistaken.create()
    mistaken.add("server", known.identity().public, host="127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    publisher = publisher_of(server, port) if server_keys else Publisher(endpoint, BusConfig())
    folder = tmp_path / client_keys if client_keys else ""
    receiver = Receiver(f"tcp://{host}:{port}", (b"",), keys=folder)
    wait_until(lambda: expected in (receiver.trouble or ""), meanwhile=lambda: arrives(publisher, receiver, 0.1))
    assert known.identity().secret not in str(receiver.trouble)
    if "add NAME" in expected:
        assert to_hex(known.identity().public) in str(receiver.trouble)
        server.add("known", known.identity().public)
        assert arrives(publisher, receiver)
        list(receiver.drain())
        wait_until(lambda: receiver.trouble is None, meanwhile=lambda: arrives(publisher, receiver, 0.1))
    receiver.close()
    publisher.close()


def test_refusals_are_counted_and_logged_without_keys(
    tmp_path: Path, server: Keyring, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = publisher_of(server, port)
    strangers = [client(tmp_path / str(number), server) for number in range(5)]
    with caplog.at_level(logging.DEBUG):
        receivers = [Receiver(publisher.endpoint, (b"",), keys=stranger.folder) for stranger in strangers]
        wait_until(lambda: publisher.refused >= 5, meanwhile=publisher.service)
    assert len(caplog.records) <= 1
    for keyring in (server, *strangers):
        identity = keyring.identity()
        assert identity.secret not in caplog.text
        assert identity.public not in caplog.text
    publisher.close()
    for receiver in receivers:
        receiver.close()


def test_remote_endpoints_need_keys(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=r"without keys mien serves this machine only; .*mien keys new"):
        Publisher("tcp://0.0.0.0:5999", BusConfig(host="0.0.0.0", keys=str(tmp_path)))
    with pytest.raises(KeysError, match="mien keys new"):
        Receiver("tcp://192.0.2.1:5560", (b"",), keys=tmp_path)


def test_every_local_address_can_be_served_with_keys(server: Keyring, port: int) -> None:
    config = BusConfig(host="0.0.0.0", port=port, keys=str(server.folder))
    publisher = Publisher(config.endpoint(), config)
    assert config.address() == f"tcp://127.0.0.1:{port}"
    receiver = Receiver(config.address(), (b"",), keys=config.keys)
    assert arrives(publisher, receiver)
    for endpoint in (receiver, publisher):
        endpoint.close()


@pytest.mark.parametrize(
    ("endpoint", "keys", "expected"),
    [
        ("tcp://127.0.0.1:5560", "", False),
        ("tcp://localhost:5560", "", False),
        ("tcp://[::1]:5560", "", False),
        ("tcp://127.0.0.1:5560", "keys", True),
        ("tcp://10.0.0.1:5560", "", True),
        ("tcp://*:5560", "", True),
        ("tcp://0.0.0.0:5560", "", True),
        ("tcp://[::]:5560", "", True),
        ("tcp://127.0.0.1.example.org:5560", "", True),
        ("tcp://localhost.example.org:5560", "", True),
        ("inproc://here", "", False),
    ],
)
def test_guarded_endpoints(endpoint: str, keys: str, expected: bool) -> None:
    assert is_guarded(endpoint, keys) is expected


def test_hosts_of_endpoints() -> None:
    assert host_of("tcp://[fe80::1]:5560") == "fe80::1"
    assert host_of("tcp://camera.local:5560") == "camera.local"
    assert host_of("ipc:///tmp/x") == ""
