"""Plans a session: from a configuration to the workers to run, and why the others do not."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mien.config import Config
from mien.errors import SourceError
from mien.install import SAMPLE
from mien.messages import Origin
from mien.models.baseline import Person
from mien.stream.sources.address import Address, File, Url, address_of
from mien.stream.sources.devices import cameras, microphones

if TYPE_CHECKING:
    from mien.stream.sources.clip import Clip


@dataclass(frozen=True)
class Session:
    """The configuration with every "auto" resolved.

    Attributes:
        workers: capture workers to run.
        absent: per modality that is not captured, why.
        notes: one line each for the user.
        label: the source, in words.
    """

    config: Config
    workers: tuple[str, ...]
    absent: dict[str, str]
    notes: tuple[str, ...]
    label: str
    origin: Origin = "live"


def plan_session(config: Config) -> Session:
    """Decide which workers run, and which tracks of a clip are played.

    Raises:
        SourceError: a clip is missing or unreadable, or there is nothing at all to capture.
        ConfigError: the person's baseline cannot be used.
    """
    absent: dict[str, str] = {}
    video, audio = address_of(config.video.source), address_of(config.audio.source)
    film, sound = _clip(video, config), _clip(audio, config)
    if film is not None and not film.has_video:
        if video != audio:
            raise SourceError(f"clip {film.name} has no picture; choose another file, or --camera none")
        absent["vision"] = "the clip has no picture"
        video = film = None
    if sound is not None and not sound.has_audio:
        if video != audio:
            raise SourceError(f"clip {sound.name} has no sound; choose another file, or --mic none")
        absent["audio"] = absent["text"] = "the clip has no sound"
        audio = sound = None
    if config.video.source == "auto" and not find_camera():
        absent["vision"] = "no camera found"
        video = None
    if config.audio.source == "auto" and not microphones():
        absent["audio"] = absent["text"] = "no microphone found"
        audio = None
    tracks = dict.fromkeys(note for clip in (film, sound) if clip is not None for note in clip.notes)
    workers = [worker for worker, source in (("video", video), ("audio", audio)) if source is not None]
    if "audio" in workers and config.text.asr != "none":
        workers.append("text")
    reasons = sorted(set(absent.values()))
    for modality, worker in (("vision", "video"), ("audio", "audio"), ("text", "text")):
        if worker not in workers:
            absent.setdefault(modality, "switched off")
    if not workers:
        raise SourceError(
            f"nothing to capture ({'; '.join(reasons) or 'all sources are off'}); "
            "connect a camera or microphone, or play a file with --clip FILE"
        )
    if config.clip.fast and not all(isinstance(each, File) for each in (video, audio) if each is not None):
        raise SourceError("--fast plays files; give one with --clip FILE")
    people: tuple[str, ...] = ()
    if config.person.name:
        person = Person.load(config.person.name)
        people = (f"compared with {person.name} at rest ({person.known})",)
    return Session(
        config=msgspec.structs.replace(
            config,
            video=msgspec.structs.replace(config.video, source=_source(video, config.video.source)),
            audio=msgspec.structs.replace(config.audio, source=_source(audio, config.audio.source)),
            # Chosen once, for all workers.
            clip=msgspec.structs.replace(
                config.clip,
                video_track=(film.video if film is not None else None) or config.clip.video_track,
                audio_track=(sound.audio if sound is not None else None) or config.clip.audio_track,
            ),
        ),
        workers=tuple(workers),
        absent=absent,
        notes=(*reasons, *tracks, *people),
        label=_label(video, audio),
        origin=_origin(video, audio),
    )


def source_origin(source: str) -> str:
    """Origin of video or audio: "device", "clip", or "sample" for the built-in clip."""
    return _origin_of(address_of(source))


def with_source(config: Config, section: str, source: str) -> Config:
    """The configuration with another source for "video" or "audio".

    The previous one remains available. Files loop, since they replace devices, which do not end.
    """
    before = getattr(config, section)
    choices = list(dict.fromkeys((*before.choices, before.source)))
    changed = msgspec.structs.replace(before, source=source, choices=choices)
    clip = config.clip
    if isinstance(address_of(source), File):
        clip = msgspec.structs.replace(clip, loop=True, **{f"{section}_track": 0})
    return msgspec.structs.replace(config, clip=clip, **{section: changed})


def _origin_of(address: Address | None) -> str:
    if not isinstance(address, File):
        return "device"
    return "sample" if address.path.resolve() == SAMPLE else "clip"


def _clip(address: Address | None, config: Config) -> Clip | None:
    if not isinstance(address, File):
        return None
    # The decoder takes 20 MB, which a supervisor of devices does not need.
    from mien.stream.sources.clip import open_clip

    return open_clip(address.path, config.clip)


def _source(address: Address | None, written: str) -> str:
    """An address as a string that every process parses the same way."""
    if address is None:
        return "none"
    return address.source if isinstance(address, File) else written


def find_camera() -> bool:
    """Whether this machine has a camera."""
    if platform.system() == "Linux":
        return any(Path("/dev").glob("video*"))
    return bool(cameras())


def _origin(*addresses: Address | None) -> Origin:
    found = {_origin_of(address) for address in addresses if address is not None}
    return "live" if "device" in found else "sample" if found == {"sample"} else "clip"


def _label(video: Address | None, audio: Address | None) -> str:
    if video == audio and video is not None:
        return video.name
    names = []
    for kind, address in (("camera", video), ("microphone", audio)):
        if isinstance(address, File | Url):
            names.append(address.name)
        elif address is not None:
            names.append(kind if address.name == "auto" else f"{kind} {address.name}")
    return ", ".join(names)
