"""The fleet's plan, `fleet.toml`: its sessions, where they may run, and their resource needs.

Parsed strictly. Errors that concern the whole fleet are raised; those of single sessions are reported, and the rest
run.
"""

from __future__ import annotations

import csv
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mien.config import Config, Host, Port, Positive, Section, SessionName, explain, merge, read_toml
from mien.errors import ConfigError
from mien.install import SAMPLE

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Share = Annotated[float, Meta(ge=0, le=1024)]
SYNTHETIC = re.compile(r"synthetic(?::([0-9]{1,2}(?:\.[0-9]+)?))?")
_LARGEST_BYTES = 64 << 20


class CapturePlan(Section, frozen=True):
    """Resources for capture: `cpus` per session, and how many `sessions` one actor supervises.

    Workers listen on ports of their node from `port` on.
    """

    cpus: Share = 1.0
    sessions: Annotated[int, Meta(ge=1, le=4096)] = 4
    port: Annotated[int, Meta(ge=1024, le=60_000)] = 18_000


class PoolPlan(Section, frozen=True):
    """Inference: a pool's resources and its capacity in sessions, as measured by `mien bench multi`.

    There are `fewest` to `most` pools (0: no limit). One is added when a pool's use of a core exceeds `use`, or its
    sessions' latency exceeds `p99_ms`; one that has been idle for `idle_s` is stopped.
    """

    cpus: Share = 1.0
    gpus: Share = 0.0
    sessions: Annotated[int, Meta(ge=1, le=4096)] = 6
    fewest: Annotated[int, Meta(ge=0, le=10_000)] = 1
    most: Annotated[int, Meta(ge=0, le=10_000)] = 0
    use: Annotated[float, Meta(gt=0, le=1)] = 0.9
    p99_ms: Positive = 200.0
    idle_s: Positive = 60.0


class GatewayPlan(Section, frozen=True):
    """The common address for subscribing to every session. Other machines need keys.

    `allow` lists remote subscribers by name, with the public key that `mien keys list` shows there.
    `metrics_port` serves /metrics to the gateway's machine; 0 does not.
    """

    host: Host = "127.0.0.1"
    port: Port = 5560
    place: dict[str, str] = msgspec.field(default_factory=dict)
    allow: dict[str, str] = msgspec.field(default_factory=dict)
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class HealthPlan(Section, frozen=True):
    """Failure detection: an actor that does not answer for `silence_s` is considered lost."""

    silence_s: Annotated[float, Meta(ge=1, le=60)] = 4.0


class RecordingPlan(Section, frozen=True):
    """Recordings, in a folder of the capturing node; empty disables recording."""

    folder: str = ""
    video: bool = False
    audio: bool = False


class SessionEntry(Section, frozen=True):
    """One session, or many: `pattern` with `count`, or the rows of a CSV file.

    `source` is for both video and audio: rtsp://..., http://..., a file, a device, or "synthetic" (rows without a
    camera, for testing a fleet). In strings, {n} is the number of a pattern's session, from 1, and {column} a cell of
    the CSV. `place` are required labels of its node; "host" is the node's name.
    """

    name: str = ""
    pattern: str = ""
    count: Count = 1
    csv: str = ""
    source: str = ""
    camera: str = ""
    mic: str = ""
    place: dict[str, str] = msgspec.field(default_factory=dict)
    config: dict[str, Any] = msgspec.field(default_factory=dict)


class _Tables(Section, frozen=True):
    fleet: Name = "fleet"
    capture: CapturePlan = CapturePlan()
    pools: PoolPlan = PoolPlan()
    gateway: GatewayPlan = GatewayPlan()
    health: HealthPlan = HealthPlan()
    recording: RecordingPlan = RecordingPlan()


class _File(_Tables, frozen=True):
    defaults: dict[str, Any] = msgspec.field(default_factory=dict)
    sessions: list[dict[str, Any]] = msgspec.field(default_factory=list)


class Planned(msgspec.Struct, frozen=True):
    """A session as planned: its configuration, without addresses, and the required node labels."""

    config: Config
    place: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config.session


class Problem(msgspec.Struct, frozen=True):
    """A session that cannot run, and why."""

    session: str
    reason: str


class Plan(_Tables, frozen=True, kw_only=True):
    """A fleet: the tables of its file, expanded.

    Attributes:
        sessions: by name, those that can run. problems: of the others.
        base: the pools' configuration.
    """

    base: Config
    sessions: dict[str, Planned]
    problems: tuple[Problem, ...] = ()


def read_plan(path: Path) -> Plan:
    """Read a `fleet.toml`.

    Raises:
        ConfigError: the file cannot be read, or has an error that concerns the whole fleet.
    """
    file = read_toml(path, _File)
    base = merge(file.defaults, {"session": f"{file.fleet}-pool"}, path)
    sessions: dict[str, Planned] = {}
    problems: list[Problem] = []
    for number, raw in enumerate(file.sessions, 1):
        title = str(raw.get("name") or raw.get("pattern") or raw.get("csv") or f"number {number}")
        try:
            entry = msgspec.convert(raw, SessionEntry)
            rows = list(_rows(entry, path.parent))
        except msgspec.ValidationError as error:
            problems.append(Problem(title, explain(str(error), SessionEntry)))
            continue
        except ConfigError as error:
            problems.append(Problem(title, str(error)))
            continue
        for values in rows:
            name = title
            try:
                name = _fill(entry.name or entry.pattern or "{name}", values)
                planned = _planned(entry, values, name, file.defaults, path.parent)
                if name in sessions:
                    raise ConfigError("another session has this name")
                sessions[name] = planned
            except ConfigError as error:
                problems.append(Problem(name, str(error)))
    if not sessions and not problems:
        raise ConfigError(f"{path} has no sessions; add a table [[sessions]] with a name and a source")
    tables: dict[str, Any] = {name: getattr(file, name) for name in _Tables.__struct_fields__}
    return Plan(**tables, base=base, sessions=sessions, problems=tuple(problems))


def _rows(entry: SessionEntry, folder: Path) -> Iterator[Mapping[str, str]]:
    """Template values of an entry, once per session."""
    given = [name for name in ("name", "pattern", "csv") if getattr(entry, name)]
    if len(given) != 1 and given != ["pattern", "csv"]:
        raise ConfigError("give a session a `name`, or a `pattern` with a `count`, or a `csv`")
    if entry.csv:
        file = folder / entry.csv
        try:
            if file.stat().st_size > _LARGEST_BYTES:
                raise ConfigError(f"{file} is larger than {_LARGEST_BYTES >> 20} MiB")
            with file.open(encoding="utf-8-sig", newline="") as table:
                for number, row in enumerate(csv.DictReader(table), 1):
                    if None in row or None in row.values():
                        raise ConfigError(f"line {number + 1} of {file} has a different number of cells than the first")
                    yield {"n": str(number), **row}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"cannot read {file}: {error}") from error
        return
    for number in range(1, entry.count + 1):
        yield {"n": str(number)}


class _Filler(string.Formatter):
    """Fills {n} and {column} and rejects anything else, such as attribute access."""

    def get_field(self, field_name: str, _args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        if field_name not in kwargs:
            raise ConfigError(f"{{{field_name}}} is unknown here; known: {', '.join(sorted(kwargs))}")
        value = kwargs[field_name]
        return (int(value) if field_name == "n" else value), field_name


def _fill(text: str, values: Mapping[str, str]) -> str:
    try:
        return _Filler().vformat(text, (), values)
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be filled in: {error}") from None


def _planned(
    entry: SessionEntry, values: Mapping[str, str], name: str, defaults: Mapping[str, Any], folder: Path
) -> Planned:
    try:
        msgspec.convert(name, SessionName)
    except msgspec.ValidationError:
        raise ConfigError("not a name for a session; use up to 64 letters, digits, dots, dashes, underscores") from None
    cells = {} if not entry.csv else dict(values)
    source = _fill(entry.source or cells.get("source", ""), values)
    camera = _fill(entry.camera or cells.get("camera", ""), values) or source
    mic = _fill(entry.mic or cells.get("mic", ""), values) or ("none" if SYNTHETIC.fullmatch(source) else source)
    if not camera and not mic:
        raise ConfigError("it has no `source`, `camera` or `mic`")
    overrides = {"session": name, "video.source": _located(camera or "none", folder)}
    overrides["audio.source"] = _located(mic or "none", folder)
    config = merge(_joined(defaults, entry.config), overrides, None)
    place = {key: _fill(value, values) for key, value in entry.place.items()}
    place |= {key.removeprefix("place."): cell for key, cell in cells.items() if key.startswith("place.") and cell}
    return Planned(config, place)


def _located(source: str, folder: Path) -> str:
    """Resolve a file's path relative to the plan."""
    if "://" in source or source in ("auto", "none", "sample") or SYNTHETIC.fullmatch(source):
        return str(SAMPLE) if source == "sample" else source
    local = folder / source
    return str(local.resolve()) if local.is_file() else source


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables, the second over the first."""
    joined = dict(first)
    for key, value in second.items():
        before = joined.get(key)
        joined[key] = _joined(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return joined
