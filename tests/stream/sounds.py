"""Sounds that the tests make themselves."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from mien.messages import Float32
from mien.stream.sources.clip import read_sound
from mien.stream.sources.source import SAMPLE_RATE


def tone(hz: float, seconds: float, amplitude: float = 0.1, rate: int = SAMPLE_RATE) -> Float32:
    """A sine, shape (n,)."""
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def spoken(sentence: str) -> Float32:
    """A sentence in a synthesised voice, shape (n,). Skips where no synthesiser is installed."""
    if not shutil.which("flite"):
        pytest.skip("needs the speech synthesiser flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", str(path)], check=True)
        return read_sound(path)


def spoken_by_espeak(sentence: str, voice: str = "en-us", words_per_minute: int = 150) -> Float32:
    """A sentence in another synthesised voice or another language, shape (n,). Skips where there is no eSpeak NG."""
    if not shutil.which("espeak-ng"):
        pytest.skip("needs the speech synthesiser espeak-ng")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-w", str(path), sentence]
        subprocess.run(command, check=True)
        return read_sound(path)


def write_wav(path: Path, samples: Float32, rate: int = SAMPLE_RATE, channels: int = 1) -> Path:
    """16 bit PCM; every channel the same."""
    data = np.repeat(np.round(samples * 32767).astype("<i2"), channels)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


def write_movie(path: Path, seconds: float, samples: Float32 | None, fps: int = 25) -> Path:
    """A small movie, grey pictures and perhaps a sound, which may be shorter or longer than the pictures."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if samples is not None else None
        for index in range(round(seconds * fps)):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index % 200, np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path
