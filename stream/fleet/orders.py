"""What the directory tells the actors of a fleet, and what they answer: the state that is wanted, the state that is.

Orders say what is to be, not what to do: an actor compares, and starts or ends what differs. So one may come twice,
or from a directory that has just been started again. Of hundreds of sessions an order names only those that have
changed since the version that the actor has; an actor that has another version is told all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec

from mien.config import Config
from mien.messages import Origin, Status
from mien.stream.processes.control import Assignment, Order

T = TypeVar("T")
WHOLE = -1  # `since`, for an order that names all there is to be
CaptureState = Literal["starting", "running", "ended", "failed"]


class Trusted(msgspec.Struct, frozen=True):
    """A node's public key, in hex, and the host at which it is connected to."""

    key: str
    host: str = ""


class CaptureTask(msgspec.Struct, frozen=True):
    """A session to capture. Another `incarnation` is to be started anew; `port` is where to look for free ones.

    `heard`: whether its inference listens. A clip waits for that, so that its beginning is predicted too.
    """

    config: Config
    incarnation: int
    port: int
    heard: bool = False


class Captured(msgspec.Struct, frozen=True):
    """A session at the actor that captures it.

    Attributes:
        endpoints: at which each worker publishes, once it does.
        workers, absent, origin, label: as in an `Assignment`.
        error: why it is not running, or what happened last.
        orders: for the inference of the session, since the last report.
    """

    incarnation: int
    state: CaptureState
    endpoints: dict[str, str] = {}
    workers: tuple[str, ...] = ()
    absent: dict[str, str] = {}
    origin: Origin = "live"
    label: str = ""
    error: str = ""
    orders: tuple[Order, ...] = ()


class CaptureOrder(msgspec.Struct, frozen=True):
    """`tasks` that are new or other since a version, and names of those that are `gone`; None where nothing is."""

    version: int
    tasks: tuple[CaptureTask, ...] | None = None
    trusted: dict[str, Trusted] | None = None
    since: int = WHOLE
    gone: tuple[str, ...] = ()


class CaptureReport(msgspec.Struct, frozen=True):
    """`version` is that of the last order with tasks."""

    version: int
    key: str
    sessions: dict[str, Captured]


class PoolOrder(msgspec.Struct, frozen=True):
    """As `CaptureOrder`. `orders` are passed on to inference as they are."""

    version: int
    assignments: tuple[Assignment, ...] | None = None
    trusted: dict[str, Trusted] | None = None
    orders: tuple[Order, ...] = ()
    since: int = WHOLE
    gone: tuple[str, ...] = ()


def renewed(before: Mapping[str, T], order: CaptureOrder | PoolOrder, given: Mapping[str, T]) -> dict[str, T]:
    """By session, what is wanted after an order. `given`: what it names."""
    kept = {} if order.since == WHOLE else {name: each for name, each in before.items() if name not in order.gone}
    return {**kept, **given}


class Served(msgspec.Struct, frozen=True):
    """A session at the pool that predicts it, as its last status says. `error`: why it is refused."""

    run: int
    state: str = "starting"
    per_second: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    predictions: int = 0
    error: str = ""
    absent: dict[str, str] = {}
    drops: dict[str, int] = {}


class PoolReport(msgspec.Struct, frozen=True):
    """A pool.

    Attributes:
        state: "starting", "ready", or "dead": its process has ended, and the pool is to be replaced.
        endpoint: where it publishes. cpu_percent: of one core. rss_mb: resident memory, MiB.
    """

    version: int
    key: str
    state: Literal["starting", "ready", "dead"]
    endpoint: str = ""
    model: str = ""
    error: str = ""
    cpu_percent: float = 0.0
    rss_mb: float = 0.0
    sessions: dict[str, Served] = {}


class GatewayOrder(msgspec.Struct, frozen=True):
    """What to forward, and statuses of sessions that no pool predicts at the moment.

    Attributes:
        pools: endpoints; None where they are as in `version`.
        gaps: per session, the status that says why it is silent: with `pools`, of all that are; else, of new ones.
        closed: sessions that are silent no longer.
    """

    version: int
    pools: tuple[str, ...] | None = None
    gaps: dict[str, Status] = {}
    trusted: dict[str, Trusted] | None = None
    closed: tuple[str, ...] = ()


class GatewayReport(msgspec.Struct, frozen=True):
    """`address` is where to subscribe. `floods`: how often all subscribers were cut off because one asked too much."""

    version: int
    key: str
    address: str = ""
    pools: int = 0
    floods: int = 0
