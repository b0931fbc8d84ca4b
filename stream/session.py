"""What a session captures: from a configuration to the workers that run, and why the others do not."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import msgspec

import mien
from mien.config import Config
from mien.errors import SourceError
from mien.messages import Origin
from mien.stream.sources.clip import clip_streams

SAMPLE = Path(mien.__file__).resolve().parent / "sample.mp4"
_URL_SCHEMES = ("rtsp://", "rtsps://", "http://", "https://", "udp://", "tcp://")

_MEDIA = frozenset(
    [
        ".aac",
        ".avi",
        ".flac",
        ".m4a",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".oga",
        ".ogg",
        ".opus",
        ".ts",
        ".wav",
        ".webm",
        ".wmv",
    ]
)


@dataclass(frozen=True)
class Session:
    """The configuration with every "auto" decided.

    Attributes:
        workers: capture workers to run.
        absent: per modality that nobody captures, why.
        notes: one line each for the person who started it.
        label: what plays, in words.
        origin: where it comes from.
    """

    config: Config
    workers: tuple[str, ...]
    absent: dict[str, str]
    notes: tuple[str, ...]
    label: str
    origin: Origin = "live"


def plan_session(config: Config) -> Session:
    """Decide what runs.

    Raises:
        SourceError: a clip is missing or unreadable, or there is nothing at all to capture.
    """
    absent: dict[str, str] = {}
    notes: list[str] = []
    video, audio = config.video.source, config.audio.source
    if is_clip(video) and not clip_streams(video).has_video:
        if video != audio:
            raise SourceError(f"clip {video} has no picture; choose another file, or --camera none")
        absent["vision"] = "the clip has no picture"
        video = "none"
    if is_clip(audio) and not clip_streams(audio).has_audio:
        if video != audio:
            raise SourceError(f"clip {audio} has no sound; choose another file, or --mic none")
        absent["audio"] = absent["text"] = "the clip has no sound"
        audio = "none"
    if video == "auto" and not find_camera():
        absent["vision"] = "no camera found"
        video = "none"
    if audio == "auto" and not find_microphone():
        absent["audio"] = absent["text"] = "no microphone found"
        audio = "none"
    notes += sorted(set(absent.values()))
    workers = [worker for worker, source in (("video", video), ("audio", audio)) if source != "none"]
    if "audio" in workers and config.text.asr != "none":
        workers.append("text")
    for modality, worker in (("vision", "video"), ("audio", "audio"), ("text", "text")):
        if worker not in workers:
            absent.setdefault(modality, "switched off")
    if not workers:
        raise SourceError(
            f"nothing to capture ({'; '.join(notes) or 'all sources are off'}); "
            "connect a camera or microphone, or play a file with --clip FILE"
        )
    if config.clip.fast and not all(is_clip(s) for s in (video, audio) if s != "none"):
        raise SourceError("--fast plays files; give one with --clip FILE")
    return Session(
        config=msgspec.structs.replace(
            config,
            video=msgspec.structs.replace(config.video, source=video),
            audio=msgspec.structs.replace(config.audio, source=audio),
        ),
        workers=tuple(workers),
        absent=absent,
        notes=tuple(notes),
        label=_label(video, audio),
        origin=_origin(video, audio),
    )


def is_clip(source: str) -> bool:
    """Whether a source names a file rather than a device or a network camera."""
    if source in ("auto", "none") or source.isdigit() or source.lower().startswith(_URL_SCHEMES):
        return False
    path = Path(source)
    # A device's name may have a dot in it ("USB Audio 2.0"), so only endings of media count for files that are missing.
    return path.is_file() or path.suffix.lower() in _MEDIA or len(path.parts) > 1


def source_origin(source: str) -> str:
    """Where picture or sound come from: "device", "clip", or "sample", which is the built-in clip."""
    if not is_clip(source):
        return "device"
    return "sample" if Path(source).resolve() == SAMPLE else "clip"


def find_camera() -> bool:
    """Whether this machine has a camera."""
    if platform.system() == "Linux":
        return any(Path("/dev").glob("video*"))
    import cv2

    capture = cv2.VideoCapture(0)
    opened = capture.isOpened()
    capture.release()
    return bool(opened)


def find_microphone() -> bool:
    """Whether this machine has a device that records."""
    try:
        import sounddevice

        return any(device["max_input_channels"] > 0 for device in sounddevice.query_devices())
    except (ImportError, OSError):
        return False


def _origin(*sources: str) -> Origin:
    found = {source_origin(source) for source in sources if source != "none"}
    return "live" if "device" in found else "sample" if found == {"sample"} else "clip"


def _label(video: str, audio: str) -> str:
    if video == audio:
        return Path(video).name
    names = [
        Path(source).name if is_clip(source) else f"{kind} {source}" if source != "auto" else kind
        for kind, source in (("camera", video), ("microphone", audio))
        if source != "none"
    ]
    return ", ".join(names)
