"""What a source is, from the text that names it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mien.config import load_config
from mien.errors import SourceError
from mien.stream.processes.plan import plan_session
from mien.stream.sources.address import Device, File, Url, address_of, clip_source, printable
from mien.stream.sources.clip import open_clip
from tests.stream.pictures import numbered, write_clip

ODD_NAMES = [
    "2024-05-01T12:30:00.mp4",
    "-dash.mp4",
    "100%03d.mp4",
    "[brackets] {braces}.mp4",
    "line\nbreak.mp4",
    "http:no-protocol.mp4",
    "query?#.mp4",
    "no suffix",
    os.fsdecode(b"bytes \xff\xfe.mp4"),
]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("auto", Device("auto")),
        ("0", Device("0")),
        ("/dev/video2", Device("/dev/video2")),
        ("USB Audio 2.0", Device("USB Audio 2.0")),
        ("rtsp://camera/1", Url("rtsp://camera/1")),
        ("rtmp://camera/live", Url("rtmp://camera/live")),
        ("srt://10.0.0.7:9000", Url("srt://10.0.0.7:9000")),
        ("HTTP://127.0.0.1:8080/stream.mjpg", Url("HTTP://127.0.0.1:8080/stream.mjpg")),
        ("talk.MP4", File(Path("talk.MP4"))),
        ("talk.aiff", File(Path("talk.aiff"))),
        ("clips/talk", File(Path("clips/talk"))),
        ("file:///clips/a%20b", File(Path("/clips/a b"))),
        ("none", None),
    ],
)
def test_source_kinds(source: str, expected: object) -> None:
    assert address_of(source) == expected


def test_only_a_url_without_its_password_is_shown() -> None:
    assert Url("rtsp://me:pass@10.0.0.7:554/one").name == "rtsp://10.0.0.7:554/one"
    assert Url("http://10.0.0.7/one?at=a@b").name == "http://10.0.0.7/one?at=a@b"


@pytest.mark.skipif(sys.platform == "win32", reason="these names are allowed on POSIX only")
@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_existing_paths_are_files_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", numbered(5)).rename(tmp_path / name)
    assert address_of(name) == File(Path(name))
    session = plan_session(load_config(None, {"video.source": clip_source(name), "audio.source": "none"}))
    assert session.label == printable(name)
    assert "\n" not in session.label
    # Another process reads the same file from what a pipe of JSON can carry.
    source = session.config.video.source.encode().decode()
    address = address_of(source)
    assert isinstance(address, File)
    assert len(list(open_clip(address.path).pictures())) == 5


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes")
def test_sources_that_are_not_files_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("folder", "is a folder"), (".", "is a folder"), ("pipe", "is a pipe"), ("/dev/null", "a device"),
                      ("dangling", "does not exist"), ("talk", "does not exist"), ("-", "does not exist")):  # fmt: skip
        address = address_of(clip_source(name))
        assert isinstance(address, File), name
        with pytest.raises(SourceError, match=why):
            open_clip(address.path)
    for name in ("rtsp://10.0.0.2/stream", "auto", "2"):
        assert clip_source(name) == name


@pytest.mark.parametrize("name", ["0", "auto", "none"])
def test_a_clip_that_is_named_like_a_device_is_still_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    address = address_of(clip_source(name))
    assert isinstance(address, File)
    assert address.path.resolve() == tmp_path / name
