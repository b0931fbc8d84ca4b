"""`mien keys` from the command line; a secret is never shown."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import zmq

from mien.config import BusConfig
from mien.stream.bus.sockets import Publisher


def mien(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"XDG_CONFIG_HOME": str(home), "HOME": str(home)} if home else {})
    return subprocess.run(
        [sys.executable, "-m", "mien", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=120,
        check=False,
    )


def test_keys_are_made_exchanged_and_revoked_without_showing_secrets(tmp_path: Path) -> None:
    camera, desk = tmp_path / "camera", tmp_path / "desk"
    errors = [mien("keys", "new", "--folder", str(folder)) for folder in (camera, desk)]
    keys = [ran.stdout.strip() for ran in errors]
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)
    errors.append(mien("keys", "add", "desk", keys[1], "--folder", str(camera)))
    errors.append(mien("keys", "add", "camera", keys[0], "--host", "10.0.0.2", "--folder", str(desk)))
    errors.append(mien("keys", "list", "--folder", str(camera)))
    assert keys[0] in errors[-1].stdout
    assert re.search(rf"desk\s+{keys[1]}", errors[-1].stdout)
    errors.append(mien("keys", "list", "--json", "--folder", str(desk)))
    listed = json.loads(errors[-1].stdout)
    assert listed == {"folder": str(desk), "key": keys[1], "peers": {"camera": {"key": keys[0], "host": "10.0.0.2"}}}
    errors.append(mien("keys", "revoke", "desk", "--folder", str(camera)))
    assert all(ran.returncode == 0 for ran in errors), [ran.stderr for ran in errors]
    errors.append(mien("keys", "list", "--folder", str(camera)))
    assert "desk" not in errors[-1].stdout
    secrets = [json.loads((folder / "identity.json").read_text())["secret"] for folder in (camera, desk)]
    everything = "".join(ran.stdout + ran.stderr for ran in errors)
    assert not any(secret in everything for secret in secrets)
    if os.name == "posix":
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_errors_are_one_line_with_their_own_exit_code(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path))
    assert mien("keys", "new", *folder).returncode == 0
    for ran in (
        mien("keys", "new", *folder),
        mien("keys", "add", "desk", "abc", *folder),
        mien("keys", "add", "../desk", "0" * 64, *folder),
        mien("keys", "revoke", "nobody", *folder),
        mien("watch", "tcp://192.0.2.7:5560", "--keys", str(tmp_path)),
        mien("watch", "tcp://192.0.2.7:5560", home=tmp_path / "empty"),
    ):
        assert ran.returncode == 11, ran.stderr
        assert len(ran.stderr.splitlines()) == 1
        assert ran.stderr.startswith("mien: ")


def test_watching_needs_keys(tmp_path: Path, port: int) -> None:
    assert mien("keys", "new", "--folder", str(tmp_path)).returncode == 0
    publisher = Publisher(f"tcp://127.0.0.1:{port}", BusConfig(keys=str(tmp_path)))
    prediction = {
        "session": "default", "run": 1, "seq": 0, "t_end_ns": 0, "sentiment": 1.5, "sentiment_smooth": 1.5,
        "emotions": {"happy": 1.0}, "confidence": 0.5, "gates": {}, "age_ms": {},
    }  # fmt: skip
    publisher.send([b"prediction/default/", b"\x01", json.dumps(prediction).encode()])
    watch = [sys.executable, "-m", "mien", "watch", publisher.endpoint, "--json", "-n", "1", "--timeout"]
    with_keys, without = (
        subprocess.Popen([*watch, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for extra in (("60", "--keys", str(tmp_path)), ("3",))
    )
    while with_keys.poll() is None or without.poll() is None:
        publisher.service()
        publisher.socket.poll(50, zmq.POLLIN)
    assert json.loads(with_keys.communicate()[0])["sentiment"] == 1.5
    out, errors = without.communicate()
    assert out == ""
    assert "requires keys" in errors
    assert without.returncode == 6
    publisher.close()
