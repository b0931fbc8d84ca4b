"""Configuration is read once, checked whole, and its errors name the key."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mien.cli._checks import check_ports
from mien.config import BusConfig, Config, load_config
from mien.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "mien.toml"
    path.write_text(text)
    return path


def test_no_file_and_no_overrides_are_the_defaults() -> None:
    assert load_config() == Config()


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, '[video]\nsource = "1"\nfps = 25\n[bus]\nport = 6000\n')
    config = load_config(path, {"video.source": "2", "session": "studio", "audio.source": None})
    assert (config.video.source, config.video.fps) == ("2", 25.0)
    assert config.bus.port == 6000
    assert config.session == "studio"
    assert config.audio == Config().audio


def test_configuration_is_immutable() -> None:
    with pytest.raises(AttributeError):
        load_config().bus.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[video]\nfsp = 30\n", r"unknown configuration key `video\.fsp` in .*mien\.toml; did you mean `fps`\?"),
        ("[vidoe]\nfps = 30\n", r"unknown configuration key `vidoe` in .*; did you mean `video`\?"),
        ("[clip]\nxyzzy = 1\n", r"unknown configuration key `clip\.xyzzy` in .*; known here: `fast`, `loop`"),
        ('[video]\nfps = "fast"\n', r"configuration key `video\.fps` in .*: expected `float`, got `str`"),
        ("[bus]\nport = 70000\n", r"configuration key `bus\.port` in .*: expected `int` <= 65535"),
        ("[inference]\nmax_hz = inf\n", r"configuration key `inference\.max_hz` in .*: expected `float` <= 1000000000"),
        ("[inference]\nsmoothing_s = nan\n", r"configuration key `inference\.smoothing_s` in .*: expected `float`"),
        ("[audio]\nchunk_ms = 30\n", r"configuration key `audio\.chunk_ms` in .*multiple of 20"),
        ('session = "two words"\n', r"configuration key `session` in .*matching regex"),
        ('[assets]\nsource = "mirror"\n', r"configuration key `assets\.source` in .*: invalid enum value 'mirror'"),
        ("[video\n", r"mien\.toml is not valid TOML"),
    ],
)
def test_an_error_names_the_key_and_what_is_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(write(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("overrides", [{"video.fsp": 30}, {"video.fps": "fast"}, {"vidoe.fps": 30}])
def test_overrides_are_checked_as_a_file_is(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`(video|vidoe)"):
        load_config(None, overrides)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml")


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "mien.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "mien.toml")


def test_each_worker_has_a_port_of_its_own() -> None:
    bus = BusConfig(host="127.0.0.1", port=7000)
    endpoints = [bus.endpoint(worker) for worker in ("inference", "video", "audio", "text")]
    assert endpoints == [f"tcp://127.0.0.1:{port}" for port in (7000, 7001, 7002, 7003)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_file_in_configs_can_be_read(path: Path) -> None:
    # A training recipe is read by `mien train`, and tested there.
    if path.stem.startswith("train"):
        pytest.skip("a training recipe")
    load_config(path)


def test_the_default_file_shows_every_key_with_its_default() -> None:
    lines = (CONFIGS / "default.toml").read_text().splitlines()
    # Every key stands there commented out; without the marks the file has to be the defaults, whole.
    bare = "\n".join(re.sub(r"^#(?=\w+ = |\[)", "", line) for line in lines)
    assert msgspec.toml.decode(bare) == msgspec.to_builtins(Config())
    assert load_config(CONFIGS / "default.toml") == Config()


@pytest.mark.parametrize(
    ("host", "endpoint", "address"),
    [
        ("::1", "tcp://[::1]:5560", "tcp://[::1]:5560"),
        ("[::1]", "tcp://[::1]:5560", "tcp://[::1]:5560"),
        ("::", "tcp://[::]:5560", "tcp://[::1]:5560"),
        ("[::]", "tcp://[::]:5560", "tcp://[::1]:5560"),
        ("*", "tcp://*:5560", "tcp://127.0.0.1:5560"),
    ],
)
def test_a_host_may_be_of_ipv6_with_or_without_brackets(host: str, endpoint: str, address: str) -> None:
    bus = BusConfig(host=host)
    assert (bus.endpoint(), bus.address()) == (endpoint, address)


@pytest.mark.parametrize("host", ["*", "[::1]"])
def test_doctor_finds_free_ports_on_every_host(host: str, port: int) -> None:
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
    [row] = check_ports(load_config(overrides={"bus.host": host, "bus.port": port}))
    assert row.verdict == "ok"
