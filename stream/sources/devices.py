"""Cameras and microphones currently connected, by name, and the other sources that can be chosen.

`python -m mien.stream.sources.devices` prints the microphones as JSON: PortAudio enumerates devices only when it
starts, so a recording process finds new ones by asking a fresh process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

from mien.config import Config
from mien.install import SAMPLE
from mien.stream.sources.address import File, Url, address_of

_LISTING_S = 10.0


@dataclass(frozen=True)
class Choosable:
    """A source that can be chosen: its name for display, and the text that `video.source` or `audio.source` takes."""

    name: str
    source: str

    @property
    def id(self) -> str:
        """Identifies it on the wire, where paths and addresses do not belong."""
        return hashlib.sha256(self.source.encode(errors="replace")).hexdigest()[:16]


def cameras() -> list[Choosable]:
    """The local cameras, without opening them."""
    try:
        from cv2_enumerate_cameras import enumerate_cameras, supported_backends
    except ImportError:
        return []
    import cv2

    backend = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_MSMF, "darwin": cv2.CAP_AVFOUNDATION}.get(sys.platform, 0)
    if backend not in supported_backends:
        return []
    try:
        found = sorted(enumerate_cameras(backend), key=lambda camera: camera.index)
    except Exception:  # any error: listing names must not end a session
        return []
    return [Choosable(f"{camera.name or 'camera'} ({camera.index})", str(camera.index)) for camera in found]


def microphones() -> list[Choosable]:
    """The recording devices that PortAudio found when it started in this process."""
    try:
        import sounddevice
    except (ImportError, OSError):
        return []
    names = [str(device["name"]) for device in sounddevice.query_devices() if device["max_input_channels"] > 0]
    # By name: indices may change at the next start.
    return [Choosable(name, name) for name in dict.fromkeys(names)]


def microphones_now() -> list[Choosable]:
    """The recording devices connected now, from a fresh process. Takes a moment."""
    command = [sys.executable, "-P", "-m", __name__]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        ran = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LISTING_S, check=True)
        return [Choosable(name, name) for name in json.loads(ran.stdout)]
    return []


def choosable(section: str, config: Config, used: str) -> list[Choosable]:
    """What can be chosen for "video" or "audio": devices, the configured source, and the current one.

    If there is no device at all, the built-in sample is used.
    """
    devices = cameras() if section == "video" else microphones_now()
    begun = config.video if section == "video" else config.audio
    texts = [begun.source, used, *begun.choices] + ([str(SAMPLE)] if not devices else [])
    found = {device.source: device for device in devices}
    for text in texts:
        address = address_of(text)
        if address is not None:
            name = address.name if isinstance(address, File | Url) else _device_name(section, text)
            key = os.path.realpath(address.path) if isinstance(address, File) else text
            found.setdefault(key, Choosable(name, text))
    return list(found.values())


def _device_name(section: str, text: str) -> str:
    kind = "camera" if section == "video" else "microphone"
    return f"default {kind}" if text == "auto" else f"{kind} {text}"


if __name__ == "__main__":
    print(json.dumps([microphone.name for microphone in microphones()]))
