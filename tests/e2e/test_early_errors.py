"""Command lines with their exit codes and first messages: never a traceback, and no process is left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mien.install import SAMPLE
from mien.stream.bus.subscriber import Subscriber
from mien.stream.recording.reader import open_recording

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.assets,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("bash") is None, reason="typed into bash on Linux"),
]

MIEN = (sys.executable, "-P", "-m", "mien")  # as the script `mien` does it
PLAY = "mien run --port $PORT --session $SESSION --asr none --clip $CLIP"
# Typed into a folder with a file `there`, a link `loop` to itself, and a disk `full/` where root may mount one.
REFUSED = [
    (f"{PLAY} --record nowhere/a.mcap", 12, r"mien: cannot write nowhere/a\.mcap: nowhere does not exist; make it.*"),
    (f"{PLAY} --record there", 12, r"mien: there exists; choose another name or remove it"),
    (f"{PLAY} --record there/a.mcap", 12, r"mien: cannot write there/a\.mcap: there is no folder.*"),
    (f"{PLAY} --record .", 12, r"mien: \. is a folder; add a file's name"),
    (f"{PLAY} --record full/a.mcap", 12, r"mien: cannot write full/a\.mcap: the disk is full"),
    (f"ulimit -f 8; {PLAY} --record a.mcap", 12, r"mien: cannot write a\.mcap: the file may not grow any more .*"),
    (f"{PLAY} --summary nowhere/a.json", 13, r"mien: cannot write nowhere/a\.json: nowhere does not exist.*"),
    (f"{PLAY} --summary there", 13, r"mien: there exists; choose another name or remove it"),
    (f"{PLAY} --summary full/a.json", 13, r"mien: cannot write full/a\.json: the disk is full"),
    (f"{PLAY} --record a.x --summary a.x", 13, r"mien: --record and --summary are both a\.x; give each .*"),
    ("mien demo --sample --headless --port $PORT --summary there", 13, r"mien: there exists; choose another name .*"),
    ("mien bench bus --json nowhere/a.json", 13, r"mien: cannot write nowhere/a\.json: nowhere does not exist.*"),
    (f"XDG_STATE_HOME=$PWD/there {PLAY}", 1,
     r"mien: cannot write logs to .*/there/.*; make it writable or set XDG_STATE_HOME"),
    (f"mkdir -p mien/log/$SESSION-inference.log; XDG_STATE_HOME=$PWD {PLAY}", 1,
     r"mien: cannot write the log .*: Is a directory; remove it, or set XDG_STATE_HOME to another folder"),
    ("mien run --asr none --clip '[bold]a[/bold] :smile:.mp4'", 3,
     r"mien: clip \[bold\]a\[/bold\] :smile:\.mp4 does not exist"),
    ("PYTHONIOENCODING=latin-1 mien run --asr none --clip 'a → b.mp4'", 3, r"mien: clip a -> b\.mp4 does not exist"),
    ("PYTHONIOENCODING=cp1252 mien run --asr none --clip '█.mp4'", 3, r"mien: clip #\.mp4 does not exist"),
    ("mien infer --port $PORT --host 192.0.2.1", 6, r"mien: refusing to bind tcp://192\.0\.2\.1:\d+: .*"),
    ("mien capture video --source $CLIP --port $PORT --host 192.0.2.1", 6, r"mien: refusing to bind .*"),
    ("mien schema >/dev/full", 13, r"mien: cannot write to standard output: the disk is full"),
    ("mien schema >&-", 0, ""),
    ("mien schema >&- 2>&- <&-", 0, ""),
    ("mien schema | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
    ("mien nosuch 2>/dev/full", 2, ""),
    ("mkdir d; cd d; rmdir ../d; mien schema >/dev/null", 0, ""),
    (f"mkdir d; cd d; rmdir ../d; {PLAY} --record a.mcap", 12, r"mien: cannot write a\.mcap: .*"),
]  # fmt: skip
SESSIONS = [
    (f"{PLAY} --json | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}", 0, ""),
    (f"{PLAY} --json --record a.mcap >/dev/full; mien export a.mcap >/dev/null && exit 13", 13,
     r"recorded \d+ predictions in a\.mcap, .*"),
    (f"{PLAY} --quiet --seconds 2 >&- 2>&-", 0, ""),
    (f"{PLAY} --json --seconds 2 >/dev/null 2>/dev/full", 0, ""),
    (f"PYTHONIOENCODING=latin-1 LC_ALL=C {PLAY} --quiet --seconds 2 >/dev/null", 0, ""),
    (f"cp $CLIP '[red]ü[x].mp4'; CLIP='[red]ü[x].mp4'; {PLAY} --quiet --seconds 2 --record '[b]ü.mcap' >/dev/null", 0,
     r"recorded \d+ predictions in \[b\]ü\.mcap, .*"),
    (f"mkdir d; cd d; rmdir ../d; {PLAY} --quiet --seconds 2 >/dev/null", 0, ""),
    # Folders called like mien, as next to a checkout, or like a library are not modules.
    (f"mkdir mien; touch queue.py numpy.py; {PLAY} --quiet --seconds 2 --record a.mcap >/dev/null", 0,
     r"recorded \d+ predictions in a\.mcap, .*"),
    ("mkdir d; cd d; rmdir ../d; mien demo --sample --headless --port $PORT --seconds 2 >/dev/null", 0, ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk without room, where this user may mount one."""
    folder = tmp_path_factory.mktemp("full")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        (folder / "filler").write_bytes(bytes(60 << 10))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def typed(line: str, folder: Path, port: int) -> tuple[int, str]:
    """Exit code and standard error of a line typed into bash; everything that it started has ended."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        ["bash", "-c", f'mien() {{ {shlex.join(MIEN)} "$@"; }}\n{line}'],
        cwd=folder,
        env=os.environ | {"PORT": str(port), "SESSION": f"typed-{port}", "CLIP": str(SAMPLE), "MARK": mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    _, output = process.communicate(timeout=240)
    deadline_s = time.monotonic() + 60.0
    while (left := marked(mark)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not left, f"left behind: {[child.cmdline() for child in left]}"
    assert "Traceback" not in output
    return process.returncode, output


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def check(line: str, code: int, first: str, folder: Path, full: Path | None, port: int) -> None:
    (folder / "there").write_bytes(b"")
    if "full/" in line:
        if full is None:
            pytest.skip("a disk without room has to be mounted by root")
        (folder / "full").symlink_to(full)
    before = set(folder.iterdir())
    returned, output = typed(line, folder, port)
    assert returned == code, output
    lines = [text for text in output.splitlines() if not text.startswith("bash: ")]
    assert re.fullmatch(first, (lines or [""])[0]) or (not first and returned == 0), output
    if code and "mkdir" not in line and "recorded" not in first:
        assert set(folder.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize(("line", "code", "first"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_errors_before_anything_starts(
    line: str, code: int, first: str, tmp_path: Path, full_disk: Path | None, port: int
) -> None:
    check(line, code, first, tmp_path, full_disk, port)


@pytest.mark.parametrize(("line", "code", "first"), SESSIONS, ids=[line for line, _, _ in SESSIONS])
def test_sessions_with_unusual_outputs(
    line: str, code: int, first: str, tmp_path: Path, full_disk: Path | None, port: int
) -> None:
    check(line, code, first, tmp_path, full_disk, port)


def test_failed_recording_is_reported_and_readable(tmp_path: Path, port: int) -> None:
    """On the terminal, in the statuses and by the exit code, within two seconds of its last message."""
    path = tmp_path / "a.mcap"
    line = (
        f"ulimit -f 150; {PLAY} --loop --quiet --seconds 600 --record {path} --summary {tmp_path}/a.json"
        " 2>stderr >/dev/null & session=$!; cat >/dev/null; kill -INT $session; wait $session"
    )
    process = subprocess.Popen(
        ["bash", "-c", f'set -m; mien() {{ exec {shlex.join(MIEN)} "$@"; }}\n{line}'],
        cwd=tmp_path,
        env=os.environ | {"PORT": str(port), "SESSION": f"typed-{port}", "CLIP": str(SAMPLE)},
        stdin=subprocess.PIPE,
    )
    status = None
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        deadline_s = time.monotonic() + 180
        while time.monotonic() < deadline_s:
            subscriber.wait(0.2)
            status = subscriber.statuses.get("supervisor")
            if status is not None and status.detail.get("recorder.state") == "failed":
                break
        assert status is not None
        error = str(status.detail["recorder.error"])
        assert status.state == "degraded"
        assert status.last_error == f"not recorded: {error}"
        recording = open_recording(path)
        predictions = list(recording.predictions())
        assert f"{len(predictions)} predictions in " in error
        assert status.t_ns - recording.last_ns < 2e9 or not predictions
        output = (tmp_path / "stderr").read_text(encoding="utf-8")
        assert f"the session continues without its recording: {error}" in output
        assert subscriber.wait(60.0), "the session did not continue"
    process.communicate(timeout=60)
    assert process.returncode == 12
    last = (tmp_path / "stderr").read_text(encoding="utf-8").splitlines()[-1]
    assert last == f"mien: {error}"
    assert json.loads((tmp_path / "a.json").read_text())["recording_error"] == error
