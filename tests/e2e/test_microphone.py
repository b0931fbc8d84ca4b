"""A microphone as the system gives it: PulseAudio's null sink is a sound card whose input is what we play to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mien.clock import NS_PER_S, Clock
from mien.config import load_config
from mien.messages import FeatureWindow
from mien.models.voice.columns import F0, PERIODICITY
from mien.stream.modalities.audio import F0_REFERENCE_HZ, create
from tests.stream.sounds import spoken, tone, write_wav
from tests.waiting import wait_until

TIMEOUT_S = 30.0
MISSING = [name for name in ("pulseaudio", "pactl", "paplay") if not shutil.which(name)]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.audio_device,
    pytest.mark.skipif(sys.platform != "linux", reason="PulseAudio's null sink is the microphone of this test"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


class SoundServer:
    """A PulseAudio server of our own, in a folder of its own, with one microphone that can be pulled out."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        (folder / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PULSE_")},
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
        }
        arguments = ["--daemonize=no", "--exit-idle-time=-1", "--disable-shm=yes"]
        self._server = subprocess.Popen(
            ["pulseaudio", "-n", *arguments, "--load=module-native-protocol-unix"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._module = ""
        wait_until(lambda: self._control("info").returncode == 0, "the sound server")

    def plug_in(self, rate: int = 44_100) -> None:
        sink = ("module-null-sink", "sink_name=microphone", f"rate={rate}")
        self._module = self._control("load-module", *sink).stdout.strip()
        assert self._module

    def pull_out(self) -> None:
        assert self._control("unload-module", self._module).returncode == 0

    def play(self, path: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["paplay", str(path)], env=self.environment)

    def stop(self) -> None:
        self._server.send_signal(signal.SIGTERM)
        self._server.wait(10)

    def _control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["pactl", *arguments], env=self.environment, capture_output=True, text=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    folder = tmp_path / "pulse"
    folder.mkdir()
    server = SoundServer(folder)
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, server.environment[name])
    for name in [name for name in os.environ if name.startswith("PULSE_")]:
        monkeypatch.delenv(name)
    server.plug_in()
    import sounddevice

    sounddevice._terminate()
    sounddevice._initialize()  # as a fresh process would: PortAudio looks for devices when it starts
    if not any(device["name"] == "default" for device in sounddevice.query_devices()):
        server.stop()
        pytest.skip("needs ALSA's PulseAudio plug-in (Debian: libasound2-plugins)")
    yield server
    server.stop()


def collect(
    stream: Iterator[FeatureWindow | None], is_done: Callable[[list[FeatureWindow]], bool], what: str
) -> list[FeatureWindow]:
    """Rows until there are enough; None counts as a look, since a modality that is idle still answers."""
    made: list[FeatureWindow] = []
    deadline = time.monotonic() + TIMEOUT_S
    while not is_done(made):
        assert time.monotonic() < deadline, f"{what} did not come; {len(made)} messages did"
        rows = next(stream)
        if rows is not None:
            made.append(rows)
    return made


def values(made: list[FeatureWindow]) -> np.ndarray:
    return np.concatenate([rows.values for rows in made])


def has_tone(hz: float) -> Callable[[list[FeatureWindow]], bool]:
    """At least a second of a tone."""

    def is_done(made: list[FeatureWindow]) -> bool:
        if not made:
            return False
        rows = values(made)
        pitch = F0_REFERENCE_HZ * 2.0 ** rows[:, F0]
        return bool(((abs(pitch / hz - 1) < 0.02) & (rows[:, PERIODICITY] > 0.9)).sum() >= 50)

    return is_done


def test_microphone_is_unplugged_and_returns_at_another_rate(server: SoundServer, tmp_path: Path) -> None:
    clock = Clock()
    modality = create(load_config(), clock)
    modality.prepare()
    began_ns = clock.now_ns()
    modality.start(began_ns)
    stream = modality.rows()
    playing = []
    try:
        playing.append(server.play(write_wav(tmp_path / "low.wav", tone(220.0, 20.0, 0.3, 44_100), 44_100)))
        made = collect(stream, has_tone(220.0), "a tone of 220 Hz")
        times = np.concatenate([rows.times_ns for rows in made])
        assert (np.diff(times) == 20_000_000).all()
        assert began_ns - NS_PER_S < times[0] < times[-1] <= clock.now_ns() + 20_000_000
        assert modality.health().state == "running"

        server.pull_out()
        collect(stream, lambda _: modality.health().state == "degraded", "the loss")
        assert "was lost" in str(modality.health().last_error)
        assert [next(stream) for _ in range(3)] == [None] * 3  # no made-up rows while it is gone

        server.plug_in(22_050)
        playing.append(server.play(write_wav(tmp_path / "high.wav", tone(330.0, 20.0, 0.3, 44_100), 44_100)))
        again = collect(stream, has_tone(330.0), "a tone of 330 Hz after the loss")
        assert modality.health().state == "running"
        assert modality.health().last_error is None
        later = np.concatenate([rows.times_ns for rows in again])
        assert later[0] > times[-1]
        assert (np.diff(later) > 0).all()
    finally:
        modality.close()
        modality.close()
        for player in playing:
            player.kill()
            player.wait()


def test_speech_is_detected_as_voice(server: SoundServer, tmp_path: Path) -> None:
    modality = create(load_config(), Clock())
    speech = write_wav(tmp_path / "speech.wav", spoken("I am so glad that you are here with me, it is wonderful."))
    modality.prepare()
    modality.start(0)
    player = None
    try:
        stream = modality.rows()
        collect(stream, lambda made: len(made) > 0, "the first rows")
        player = server.play(speech)
        made = collect(stream, lambda made: sum(int(r.valid.sum()) for r in made) > 50, "a second of voice")
        assert not made[0].valid.any()
    finally:
        modality.close()
        if player is not None:
            player.kill()
            player.wait()
