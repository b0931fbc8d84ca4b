"""A camera and a microphone that can be unplugged: a clip over HTTP, and PulseAudio's null sink.

Both reach the workers as devices do: through the network stack and the system's sound server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from mien.errors import SourceError
from mien.messages import Float32
from mien.stream.bus.ports import free_port
from mien.stream.sources.clip import open_clip, read_sound
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import SAMPLE_RATE

_PATIENCE_S = 10.0
_QUALITY = 90


class CameraServer:
    """Loops over pictures as multipart JPEG, at a fixed rate, while it is switched on.

    Args:
        jpegs: the pictures; no two equal in a row, since a camera that repeats a picture counts as frozen.
        period_s: time between two of them.

    Attributes:
        url: its address, also while it is off.
    """

    def __init__(self, jpegs: Sequence[bytes], period_s: float) -> None:
        self._jpegs, self._period_s = jpegs, period_s
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/video"
        self._on = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def switch_on(self) -> None:
        jpegs, on, period_s = self._jpegs, self._on, self._period_s

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
                self.end_headers()
                number, due_s = 0, time.monotonic()
                try:
                    while on.is_set():
                        jpeg = jpegs[number % len(jpegs)]
                        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                        number, due_s = number + 1, max(due_s + period_s, time.monotonic() - 0.1)
                        time.sleep(max(due_s - time.monotonic(), 0.0))
                except OSError:
                    return

            def log_message(self, *_: object) -> None:
                """A camera does not log."""

        on.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def switch_off(self) -> None:
        """Close all connections and stop serving, until it is switched on again."""
        self._on.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def clip_camera(clip: Path) -> CameraServer:
    """A camera that shows a clip's first half minute at the clip's own pace, with sensor noise.

    Raises:
        SourceError: it has no pictures.
    """
    noise = np.random.default_rng(0)
    jpegs: list[bytes] = []
    times_ns: list[int] = []
    for t_ns, frame in open_clip(clip).pictures():
        image = upright_bgr(frame).astype(np.int16)
        image += noise.integers(-3, 4, image.shape, np.int16)
        clean = np.clip(image, 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())
        times_ns.append(t_ns)
        if t_ns > 30e9:
            break
    if len(times_ns) < 2:
        raise SourceError(f"clip {clip} has no pictures to serve; choose another file")
    return CameraServer(jpegs, (times_ns[-1] - times_ns[0]) / 1e9 / (len(times_ns) - 1))


def write_wave(path: Path, samples: Float32) -> None:
    """Write sound (n,), mono 16 kHz, as a 16-bit WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


class SoundCard:
    """A private PulseAudio server with one microphone, which plays a clip in a loop while it is plugged in.

    Args:
        clip: to play. folder: empty, for the server's files.

    Attributes:
        environment: variables that make this microphone a process's default.

    Raises:
        SourceError: something is missing on this machine.
    """

    def __init__(self, clip: Path, folder: Path) -> None:
        missing = [name for name in ("pulseaudio", "pactl", "paplay") if not shutil.which(name)]
        if sys.platform != "linux" or missing:
            raise SourceError(f"no microphone to unplug: needs PulseAudio on Linux ({', '.join(missing) or 'Linux'})")
        folder.chmod(0o700)
        self._wave = folder / "clip.wav"
        write_wave(self._wave, read_sound(clip))
        alsa = folder / "asound.conf"
        alsa.write_text("</usr/share/alsa/alsa.conf>\npcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self.environment = {"PULSE_SERVER": f"unix:{folder}/native", "ALSA_CONFIG_PATH": str(alsa)}
        protocol = f"module-native-protocol-unix auth-anonymous=1 socket={folder}/native"
        self._server = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disable-shm=yes", f"--load={protocol}"],
            env={**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until_s = time.monotonic() + _PATIENCE_S
        while self._control("info").returncode != 0:
            if time.monotonic() > until_s or self._server.poll() is not None:
                self.close()
                raise SourceError("PulseAudio does not start here")
            time.sleep(0.1)
        self._module = ""
        self._closing = threading.Event()
        self._player: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._play, name="sound-card", daemon=True).start()

    def plug_in(self) -> None:
        """Add the microphone, and play the clip."""
        self._module = self._control("load-module", "module-null-sink", "sink_name=microphone").stdout.strip()

    def pull_out(self) -> None:
        self._control("unload-module", self._module)
        self._module = ""

    def close(self) -> None:
        if hasattr(self, "_closing"):
            self._closing.set()
            if self._player is not None and self._player.poll() is None:
                self._player.kill()
        self._server.terminate()
        self._server.wait(10)

    def _play(self) -> None:
        while not self._closing.is_set():
            if self._module:
                self._player = subprocess.Popen(
                    ["paplay", "--device=microphone", str(self._wave)],
                    env={**os.environ, **self.environment},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                self._player.wait()
            self._closing.wait(0.1)

    def _control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(["pactl", *arguments], env=environment, capture_output=True, text=True)
