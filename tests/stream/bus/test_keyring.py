"""Key files: who can read them, what is rejected, and that secrets appear nowhere else."""

from __future__ import annotations

import itertools
import json
import os
import stat
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from mien.errors import KeysError
from mien.stream.bus.keyring import Keyring, parse_public, to_hex
from tests.waiting import wait_until

PUBLIC = zmq.curve_keypair()[0].decode()


def test_new_keys_are_a_pair_and_round_trip(tmp_path: Path) -> None:
    made = Keyring(tmp_path / "keys").create()
    assert Keyring(tmp_path / "keys").identity() == made
    assert zmq.curve_public(made.secret.encode()).decode() == made.public
    assert made.secret not in repr(made)


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keyring = Keyring(tmp_path / "keys")
        keyring.create()
        keyring.add("desk", PUBLIC)
    finally:
        os.umask(before)
    for path in (keyring.identity_path, tmp_path / "keys/peers/desk.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_secret_readable_by_others_is_refused(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    keyring.create()
    keyring.identity_path.chmod(0o640)
    with pytest.raises(KeysError, match=r"others can read .*chmod 600"):
        keyring.identity()


def test_keys_are_not_replaced_by_mistake(tmp_path: Path) -> None:
    first = Keyring(tmp_path).create()
    with pytest.raises(KeysError, match="--force"):
        Keyring(tmp_path).create()
    assert Keyring(tmp_path).identity() == first
    assert Keyring(tmp_path).create(force=True) != first


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"[" * 5000, b'{"public": "a", "secret": "b"}'])
def test_a_damaged_file_is_one_clear_line_without_its_content(tmp_path: Path, damage: bytes) -> None:
    keyring = Keyring(tmp_path)
    keyring.create()
    keyring.identity_path.write_bytes(damage)
    with pytest.raises(KeysError, match=r"damaged; .*mien keys new --force") as raised:
        keyring.identity()
    assert "\n" not in str(raised.value)


def test_mismatched_keys_are_refused(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    identity = keyring.create()
    keyring.identity_path.write_text(json.dumps({"public": PUBLIC, "secret": identity.secret}))
    with pytest.raises(KeysError, match="damaged") as raised:
        keyring.identity()
    assert identity.secret not in str(raised.value)


def test_a_machine_is_added_listed_and_revoked(tmp_path: Path) -> None:
    keyring, other = Keyring(tmp_path), Keyring(tmp_path)
    assert not other.is_allowed(PUBLIC)
    keyring.add("desk", to_hex(PUBLIC), host="10.0.0.2")
    wait_until(lambda: other.is_allowed(PUBLIC), "the key, unknown to another process")
    assert other.key_of("10.0.0.2") == PUBLIC
    assert other.key_of("10.0.0.3") is None
    keyring.revoke("desk")
    assert not keyring.is_allowed(PUBLIC)
    assert keyring.peers() == {}
    with pytest.raises(KeysError, match="no machine is called desk; known: none"):
        keyring.revoke("desk")


def test_a_name_is_not_given_to_another_key(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    keyring.add("desk", PUBLIC)
    keyring.add("desk", PUBLIC, host="10.0.0.2")
    with pytest.raises(KeysError, match="another key"):
        keyring.add("desk", zmq.curve_keypair()[0].decode())


@pytest.mark.parametrize("name", ["", "..", ".hidden", "../desk", "a/b", "a\\b", "a" * 65, "a\n", "-x", "a\0"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    keyring = Keyring(tmp_path / "keys")
    for act in (lambda: keyring.add(name, PUBLIC), lambda: keyring.revoke(name)):
        with pytest.raises(KeysError, match="not a name"):
            act()
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "text",
    ["", "a" * 63, "g" * 64, "a" * 65, PUBLIC[:-1], PUBLIC + "0", "~" * 40, "ü" * 40, "#" * 40],
    ids=itertools.count(),  # a test's name is the same in every process; the key is a new one in each
)
def test_invalid_public_keys_are_refused(text: str) -> None:
    with pytest.raises(KeysError, match="64 hex digits"):
        parse_public(text)


def test_both_forms_of_a_key_are_one_key() -> None:
    assert parse_public(to_hex(PUBLIC)) == parse_public(PUBLIC) == PUBLIC
    assert parse_public(f" {to_hex(PUBLIC).upper()}\n") == PUBLIC
    assert bytes.fromhex(to_hex(PUBLIC)) == z85.decode(PUBLIC)


@pytest.mark.parametrize("content", [b"", b"null", b'{"public": "short"}', b"\xff" * 10_000, b'{"public": 5}'])
def test_a_damaged_entry_admits_no_key_and_the_others_stay_valid(tmp_path: Path, content: bytes) -> None:
    keyring = Keyring(tmp_path)
    keyring.add("desk", PUBLIC)
    (tmp_path / "peers/broken.json").write_bytes(content)
    assert Keyring(tmp_path).allowed() == {PUBLIC}
    assert [path.name for path in keyring.unreadable()] == ["broken.json"]
