"""Start-up errors are one clear line with their own exit code, from whichever process they come."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mien.install import SAMPLE
from mien.models.weights import SHIPPED
from tests.e2e.conftest import command
from tests.needs import run_program
from tests.stream.processes.test_plan import make_clip

# Not marked e2e: none of these sessions gets as far as predicting, so they may run in parallel with other tests.
pytestmark = pytest.mark.assets


def assert_fails(port: int, code: int, *parts: str, arguments: tuple[str, ...], **environment: str) -> None:
    line = command("run", "--json", "--port", str(port), "--session", f"bad-{port}", *arguments)
    ran = run_program(line, 180, environment)
    errors = [line for line in ran.stderr.splitlines() if line.startswith("mien: ")]
    assert ran.returncode == code, ran.stderr
    assert len(errors) == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert not ran.stdout
    for part in parts:
        assert part in errors[0], errors[0]


def text_file(folder: Path) -> Path:
    path = folder / "words.mp4"
    path.write_text("not a clip")
    return path


def silent(folder: Path) -> Path:
    return make_clip(folder / "silent.mp4", sound=False)


def dark(folder: Path) -> Path:
    return make_clip(folder / "dark.mp4", picture=False)


@pytest.mark.parametrize(
    ("make", "flags", "parts"),
    [
        (lambda folder: folder / "gone.mp4", ("--clip",), ("gone.mp4", "does not exist")),
        (text_file, ("--clip",), ("words.mp4", "cannot be read")),
        (silent, ("--camera", "none", "--mic"), ("no sound",)),
        (dark, ("--mic", "none", "--camera"), ("no picture",)),
    ],
)
def test_clips(
    port: int, tmp_path: Path, make: Callable[[Path], Path], flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_fails(port, 3, *parts, arguments=(*flags, str(make(tmp_path))))


def test_a_clip_of_zero_length(port: int, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert_fails(port, 3, "empty.mp4", arguments=("--clip", str(empty)))


def test_missing_camera(port: int) -> None:
    assert_fails(port, 3, "63", arguments=("--camera", "63", "--mic", "none"))


def test_unreachable_network_camera(port: int) -> None:
    url = "http://127.0.0.1:9/picture.mjpg"
    assert_fails(port, 3, "127.0.0.1:9", arguments=("--camera", url, "--mic", "none"))


def test_an_unknown_microphone(port: int) -> None:
    assert_fails(port, 3, "microphone", arguments=("--camera", "none", "--mic", "no such microphone"))


def test_a_missing_asset(port: int, tmp_path: Path) -> None:
    config = tmp_path / "mien.toml"
    config.write_text(f'[assets]\noffline = true\ncache = "{(tmp_path / "empty").as_posix()}"\n')
    assert_fails(port, 4, "offline", arguments=("--config", str(config), "--clip", str(SAMPLE)))


def test_missing_checkpoint(port: int, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.safetensors")
    assert_fails(
        port, 5, "none.safetensors", arguments=("--clip", str(SAMPLE), "--asr", "none", "--checkpoint", missing)
    )


def test_a_damaged_checkpoint(port: int, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(SHIPPED.fusion.read_bytes()[:1000])
    assert_fails(port, 5, "damaged", arguments=("--clip", str(SAMPLE), "--asr", "none", "--checkpoint", str(damaged)))


def test_a_checkpoint_for_other_extractors(port: int, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    with safe_open(SHIPPED.fusion, framework="np") as file:
        metadata = file.metadata()
    save_file(
        load_file(SHIPPED.fusion),
        other,
        {k: v.replace("mien-vision-", "elsewhere-") for k, v in metadata.items()},
    )
    # An engine for which nothing has to be compiled first.
    arguments = ("--clip", str(SAMPLE), "--asr", "none", "--engine", "torch", "--checkpoint", str(other))
    assert_fails(port, 5, "vision", "elsewhere", arguments=arguments)


def test_an_unknown_engine(port: int) -> None:
    arguments = ("--clip", str(SAMPLE), "--asr", "none", "--engine", "onx")
    assert_fails(port, 8, "did you mean 'onnx'", arguments=arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere XDG_STATE_HOME does not affect logs")
def test_unwritable_log_folder(port: int, tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file where a folder should be")
    try:
        assert_fails(
            port,
            1,
            "cannot write logs",
            arguments=("--clip", str(SAMPLE), "--asr", "none"),
            XDG_STATE_HOME=str(blocked),
        )
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


def test_unavailable_speech_model(port: int) -> None:
    assert_fails(port, 4, "Whisper small", "--asr", arguments=("--clip", str(SAMPLE), "--asr", "small"))


@contextmanager
def rude_camera(*, hang: bool) -> Iterator[str]:
    """A network camera that accepts the connection and then sends nothing, or hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        stopping = threading.Event()
        held: list[socket.socket] = []

        def answer() -> None:
            while not stopping.is_set():
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    held.append(connection) if hang else connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/picture.mjpg"
        finally:
            stopping.set()
            thread.join()
            for connection in held:
                connection.close()


@pytest.mark.parametrize("hang", [True, False], ids=["busy", "vanishing"])
def test_camera_that_connects_but_sends_no_frames(port: int, hang: bool) -> None:
    with rude_camera(hang=hang) as url:
        assert_fails(port, 3, "127.0.0.1", arguments=("--camera", url, "--mic", "none"))
