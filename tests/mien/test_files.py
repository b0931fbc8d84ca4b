"""Files written by mien, on disks that are full, read-only or missing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mien.engines.cache import Cache
from mien.engines.selection import find_backend
from mien.errors import DataError, EngineError, FileError
from mien.files import ROOM_BYTES, check_target, whole_file, write_file
from mien.models.weights.tensors import write_tensors
from tests.engines.networks import make_network

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
ordinary = pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is forbidden to root")


@contextmanager
def small_files() -> Iterator[None]:
    """Like `ulimit -f`: no file grows beyond a thousand bytes. The error is that of a full disk.

    Only within a test's body: pytest's own output may be a file.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB with hardly any room left."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (folder / "filler").write_bytes(bytes((256 << 10) - ROOM_BYTES // 2))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, "old")
    write_file(path, "nëw")
    assert path.read_bytes() == "nëw".encode()
    assert os.listdir(path.parent) == ["a.json"]


@posix
def test_private_files_and_kept_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "private", b"", private=True)
        write_file(tmp_path / "public", b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "private") == 0o600
    assert mode(tmp_path / "public") == 0o644
    (tmp_path / "public").chmod(0o640)
    write_file(tmp_path / "public", b"again")
    assert mode(tmp_path / "public") == 0o640


@posix
def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_file(tmp_path / "link", b"through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"through"
    check_target(Path(os.devnull))
    write_file(Path(os.devnull), b"gone")
    assert not Path(os.devnull).is_file()


def test_longest_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".json")
    check_target(path, new=True)
    write_file(path, b"content")
    assert path.read_bytes() == b"content"
    with pytest.raises(FileError, match="name is too long"):
        write_file(tmp_path / ("é" * 130), b"content")


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_file(path, b"old")

    def interrupted() -> None:
        with whole_file(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


@posix
def test_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_file(path, b"old")
    with small_files(), pytest.raises(DataError, match=r"manifest\.json: the file may not grow any more"):
        write_file(path, bytes(2000), error=DataError)
    with small_files(), pytest.raises(FileError, match="may not grow any more"):
        check_target(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_full_disk_is_found_early_and_leaves_nothing(full_disk: Path) -> None:
    with pytest.raises(FileError, match="the disk is full"):
        check_target(full_disk / "new.json", new=True)
    with pytest.raises(FileError, match="the disk is full"):
        write_file(full_disk / "new.json", bytes(ROOM_BYTES))
    with pytest.raises(FileError, match="the disk is full"):
        write_tensors(full_disk / "new.safetensors", {"weights": torch.zeros(ROOM_BYTES // 4)})
    assert os.listdir(full_disk) == ["filler"]


def test_compiled_network_on_a_full_disk_is_a_clear_error(full_disk: Path) -> None:
    (full_disk / "more").write_bytes(bytes(ROOM_BYTES // 2))
    with pytest.raises(EngineError, match=r"cannot store the compiled form of .small. .*: the disk is full"):
        Cache(full_disk).open(make_network(), find_backend("onnx"), "fp32", 1)


def test_unwritable_targets_are_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    for path, message in (
        (tmp_path, "is a folder; add a file's name"),
        (tmp_path / "file", "exists; choose another name or remove it"),
        (tmp_path / "no" / "such" / "file", "does not exist; make it, or choose another place"),
        (tmp_path / "file" / "file", "is no folder, or choose another place"),
    ):
        with pytest.raises(FileError, match=message):
            check_target(path, new=True)
    check_target(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"here"


@ordinary
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileError, match="permission denied"):
            check_target(tmp_path / "file")
    finally:
        tmp_path.chmod(0o700)
