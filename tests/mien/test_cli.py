"""The command line's errors: one clear line, an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mien
from mien.assets import ASSETS
from mien.install import commit
from tests.needs import run_program


def run_mien(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, "-m", "mien", *arguments], environment=environment)


def assert_one_line(ran: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """A single line on standard error, nothing on standard output, and this exit code."""
    assert ran.returncode == code, ran.stderr
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert ran.stderr.startswith("mien: ")
    for part in parts:
        assert part in ran.stderr
    assert not ran.stdout


def test_version() -> None:
    long, short = run_mien("--version"), run_mien("-V")
    known = commit()
    assert long.stdout == f"mien {mien.__version__}" + (f" (commit {known})" if known else "") + "\n"
    assert (short.returncode, short.stdout) == (long.returncode, long.stdout) == (0, long.stdout)


def test_the_shell_completes_commands_and_options() -> None:
    words = run_mien(_MIEN_COMPLETE="complete_bash", COMP_WORDS="mien wei", COMP_CWORD="1")
    assert words.stdout.split() == ["weights"]
    options = run_mien(_MIEN_COMPLETE="complete_bash", COMP_WORDS="mien weights --re", COMP_CWORD="2")
    assert options.stdout.split() == ["--restore"]
    assert "--install-completion" in run_mien("--help", COLUMNS="200").stdout


def test_help_names_every_command() -> None:
    ran = run_mien("--help", COLUMNS="200")
    assert ran.returncode == 0
    for name in ("assets", "capture", "demo", "doctor", "infer", "run", "watch"):
        assert f" {name} " in ran.stdout


def test_no_arguments_print_help() -> None:
    ran = run_mien()
    assert "COMMAND [ARGS]..." in ran.stdout
    assert "Traceback" not in ran.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    ran = run_mien("rum")
    assert ran.returncode == 2
    assert "No such command 'rum'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["run", "assets", "doctor"])
def test_unknown_configuration_key_suggests_the_nearest(command: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[video]\nfsp = 30\n")
    ran = run_mien(command, "--config", str(path))
    assert_one_line(ran, 2, "unknown configuration key `video.fsp`", str(path), "did you mean `fps`?")


def test_a_value_of_the_wrong_type_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[bus]\nport = "high"\n')
    assert_one_line(run_mien("run", "--config", str(path)), 2, "`bus.port`", "expected `int`, got `str`")


def test_missing_configuration() -> None:
    assert_one_line(run_mien("run", "--config", "absent.toml"), 2, "cannot read configuration absent.toml")


def test_unknown_asset_suggests_the_nearest() -> None:
    assert_one_line(run_mien("assets", "whisper-tiny"), 4, "did you mean `whisper-tiny.en`?")


def test_a_missing_asset_offline_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(f"[assets]\noffline = true\ncache = {json.dumps(str(tmp_path / 'cache'))}\n")
    ran = run_mien("assets", "face-landmarker", "--config", str(path))
    assert_one_line(ran, 4, "asset `face-landmarker`", "mien assets face-landmarker")


def test_an_asset_with_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "face_landmarker.task"
    fake.write_bytes(bytes(ASSETS["face-landmarker"].size))
    path = tmp_path / "my.toml"
    path.write_text(f'[assets.paths]\n"face-landmarker" = {json.dumps(str(fake))}\n')
    ran = run_mien("assets", "face-landmarker", "--config", str(path))
    assert_one_line(ran, 4, "face_landmarker.task has the wrong hash", "assets.paths.face-landmarker")


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "my.toml"
    path.write_text(f"[assets]\ncache = {json.dumps(str(tmp_path / 'file'))}\n")
    ran = run_mien("assets", "face-landmarker", "--config", str(path))
    assert_one_line(ran, 4, "cannot write asset `face-landmarker`", "assets.cache")
    ran = run_mien("cache", "assets", "--clear", "--config", str(path))
    assert_one_line(ran, 2, f"{tmp_path / 'file'}, the cache of assets, is not a folder", "assets.cache")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(sys.platform != "linux", reason="POSIX permissions, or a mounted disk")
def test_cache_that_cannot_be_removed_is_not_called_cleared(tmp_path: Path) -> None:
    stays, goes = (tmp_path / "mien" / "datasets" / name for name in ("a", "b"))
    for folder in (stays, goes):
        (folder / "rows").mkdir(parents=True)
    if os.geteuid():
        stays.chmod(0o500)
    elif subprocess.run(["mount", "-t", "tmpfs", "tmpfs", stays / "rows"], check=False).returncode:
        pytest.skip("mounting is not allowed here, and nothing is forbidden to root")
    try:
        ran = run_mien("cache", "datasets", "--clear", "--json", XDG_CACHE_HOME=str(tmp_path))
    finally:
        if os.geteuid():
            stays.chmod(0o700)
        else:
            subprocess.run(["umount", stays / "rows"], check=True)
    assert ran.returncode == 13
    assert f"mien: cannot remove {stays}: " in ran.stderr
    assert [each["cleared"] for each in json.loads(ran.stdout)] == [False]
    assert not goes.exists()


def test_assets_are_listed_for_programs(tmp_path: Path) -> None:
    ran = run_mien("assets", "--list", "--json", XDG_CACHE_HOME=str(tmp_path), LOCALAPPDATA=str(tmp_path))
    assert ran.returncode == 0
    rows = {row["name"]: row for row in json.loads(ran.stdout)}
    assert rows.keys() == ASSETS.keys()
    for name, row in rows.items():
        assert row["licence"] == ASSETS[name].licence
        assert row["state"] in ("ok", "missing")
        assert row["sha256"] == {file.name: file.sha256 for file in ASSETS[name].files}


def test_doctor_gives_each_finding_a_verdict() -> None:
    ran = run_mien("doctor", "--json")
    rows = json.loads(ran.stdout)
    assert {"python", "packages: base", "gpu", "checkpoint", "ports", "cache for assets"} <= {
        row["area"] for row in rows
    }
    assert {row["verdict"] for row in rows} <= {"ok", "warn", "fail"}
    assert all(row["advice"] for row in rows if row["verdict"] != "ok")
    assert ran.returncode == (1 if any(row["verdict"] == "fail" for row in rows) else 0)
    assert "Traceback" not in ran.stderr


def test_doctor_finds_problems(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "my.toml"
    cache = json.dumps(str(tmp_path / "file" / "cache"))
    path.write_text(f'[assets]\ncache = {cache}\n[inference]\ncheckpoint = "absent.safetensors"\n')
    ran = run_mien("doctor", "--json", "--config", str(path))
    verdicts = {row["area"]: row["verdict"] for row in json.loads(ran.stdout)}
    assert verdicts["cache for assets"] == "fail"
    assert verdicts["checkpoint"] == "fail"
    assert ran.returncode == 1
